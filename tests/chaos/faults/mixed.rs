//! Everything at once, in an order that nobody chose.

use std::time::{Duration, SystemTime};

use sqlx::Executor as _;
use tokio::time::sleep;

use super::provider::{broken, hurried, limited, page, short};
use super::{Injected, Outcome};
use crate::arena::Arena;
use crate::fake_openai::Answer;

/// Numbers that follow from a seed: splitmix64, <https://prng.di.unimi.it/splitmix64.c>.
struct Chance(u64);

impl Chance {
    fn below(&mut self, count: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % u64::try_from(count).unwrap()).unwrap()
    }
}

/// Two workers at a time; one of them or what they depend on breaks at each step, while rows come, change and go. `CHAOS_SEED` chooses the
/// steps, though not the moments.
pub async fn everything(arena: &mut Arena, steps: usize) -> Outcome {
    let seed = std::env::var("CHAOS_SEED").ok().and_then(|seed| seed.parse().ok());
    let now =
        || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.subsec_nanos().into());
    let seed: u64 = seed.unwrap_or_else(now);
    let mut chance = Chance(seed);
    let mut at_work = [arena.worker(), arena.worker()];
    let mut story = Vec::new();
    for _ in 0..steps {
        arena.insert(5).await;
        let one = chance.below(2);
        let word = match chance.below(11) {
            0 => {
                arena.kill(at_work[one]);
                at_work[one] = arena.worker();
                "kill -9"
            }
            1 => {
                arena.signal(at_work[one], "TERM");
                arena.ended(at_work[one]).await?;
                at_work[one] = arena.worker();
                "SIGTERM"
            }
            2 => {
                arena.signal(at_work[one], "STOP");
                sleep(Duration::from_millis(1_000 + 500 * u64::try_from(chance.below(12)).unwrap())).await;
                arena.signal(at_work[one], "CONT");
                "SIGSTOP"
            }
            3 => {
                let ours = "select pg_terminate_backend(pid) from pg_stat_activity \
                            where datname = current_database() and application_name like 'gristmill%'";
                arena.sql(ours).await.ok();
                "terminated"
            }
            4 => {
                // One garbled answer at most: an attempt is burnt by each, and an innocent job has five.
                let answers: [fn() -> Answer; 5] = [broken, hurried, limited, page, short];
                arena.vendor.script([answers[chance.below(5)](), answers[chance.below(3)]()]);
                "bad answers"
            }
            5 | 6 => {
                arena
                    .sql(
                        "update public.documents set content = content || ' Changed.' where content is not null and deleted_at is null and random() < 0.05; \
                         update public.documents set deleted_at = now() where deleted_at is null and random() < 0.02; \
                         update public.documents set deleted_at = null where deleted_at is not null and name <> 'bystander' and random() < 0.3; \
                         delete from public.documents where name <> 'bystander' and random() < 0.02",
                    )
                    .await?;
                "rows"
            }
            7 => {
                arena.sql("select gristmill.pause('documents', 'a person looks')").await?;
                sleep(Duration::from_millis(500)).await;
                arena.sql("select gristmill.resume('documents')").await?;
                "pause"
            }
            8 => {
                let mut holder = arena.world.database.connect().await;
                holder.execute("begin; select from public.documents where random() < 0.3 for update").await?;
                sleep(Duration::from_millis(700)).await;
                holder.execute("rollback").await?;
                "rows held"
            }
            9 => {
                let gate = arena.vendor.hold();
                sleep(Duration::from_millis(600)).await;
                drop(gate);
                "slow provider"
            }
            _ => {
                let noise =
                    "do $$ begin for n in 1..2000 loop perform pg_notify('gristmill_jobs', n::text); end loop; end $$";
                arena.sql(noise).await?;
                "noise"
            }
        };
        story.push(word);
        if let Some(dead) = at_work.into_iter().find(|worker| arena.has_ended(*worker)) {
            return Err(Injected::Failed(format!("worker {dead} ended by itself; seed {seed}: {}", story.join(", "))));
        }
        sleep(Duration::from_millis(50 * u64::try_from(chance.below(6)).unwrap())).await;
    }
    eprintln!("everything at once, seed {seed}: {}", story.join(", "));
    arena.healed();
    Ok(())
}

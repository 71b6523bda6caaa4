-- A commit ends hundreds of jobs, and the trigger that tells of an end ran for each only to find that nobody is told. The commit knows it
-- of its pipeline, under a lock, and says so for the length of its transaction.

drop trigger embedding_jobs_signal_end on gristmill.embedding_jobs;
create trigger embedding_jobs_signal_end after update of state on gristmill.embedding_jobs
    for each row when (
        new.state in ('completed', 'skipped', 'failed', 'cancelled') and old.state is distinct from new.state
        and current_setting('gristmill.untold', true) is distinct from new.pipeline
    ) execute function gristmill.signal_end();

-- Each share of a call is written twice, before the call and after it: with room beside it, the second time without its indexes.
alter table gristmill.provider_call_jobs set (fillfactor = 45);

-- Applications that chain work onto a job's end had to poll for it. A pipeline may now be told of: by NOTIFY, and by a webhook whose
-- call is written here with the end itself and delivered afterwards, so that neither is lost and no job waits for a receiver.

alter table gristmill.pipelines add column signal_channel text, add column signal_webhook boolean not null default false;

create table gristmill.outbox (
    -- What the receiver knows a repeated delivery by.
    id uuid primary key default gen_random_uuid(),
    job_id bigint not null references gristmill.embedding_jobs (id) on delete cascade,
    pipeline text not null,
    payload jsonb not null,
    -- When it may be tried: while a worker is at it, when another may.
    due_at timestamptz not null default clock_timestamp(),
    attempts int not null default 0,
    -- From when on it is tried, for as long as it is tried.
    since timestamptz not null default clock_timestamp(),
    delivered_at timestamptz,
    failed_at timestamptz,
    error text,
    check (delivered_at is null or failed_at is null)
);
create index outbox_due on gristmill.outbox (pipeline, due_at) where delivered_at is null and failed_at is null;
create index outbox_failed on gristmill.outbox (pipeline) where failed_at is not null;
create index outbox_job on gristmill.outbox (job_id);
create index outbox_age on gristmill.outbox (coalesce(delivered_at, failed_at));

-- A trigger, because a job has many ends: a commit, a person's word, a worker that died with it twice.
create function gristmill.signal_end() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
    channel text;
    webhook boolean;
    payload jsonb;
begin
    select p.signal_channel, p.signal_webhook into channel, webhook from gristmill.pipelines p
    where p.name = new.pipeline and (p.signal_channel is not null or p.signal_webhook);
    if not found then
        return null;
    end if;
    payload := jsonb_build_object(
        'pipeline', new.pipeline, 'job', new.id, 'key', new.source_key, 'state', new.state, 'revision', new.revision);
    if webhook then
        insert into gristmill.outbox (job_id, pipeline, payload) values (new.id, new.pipeline, payload);
    end if;
    if channel is not null then
        -- Postgres takes less than 8,000 bytes, and a key may be longer: the job's number finds it.
        if octet_length(payload::text) > 7999 then
            payload := payload || '{"key": null}';
        end if;
        perform pg_notify(channel, payload::text);
    end if;
    return null;
end
$$;
create trigger embedding_jobs_signal_end after update of state on gristmill.embedding_jobs
    for each row when (
        new.state in ('completed', 'skipped', 'failed', 'cancelled') and old.state is distinct from new.state
    ) execute function gristmill.signal_end();

-- Tries failed webhooks of a pipeline again, for another day.
create function gristmill.redeliver(pipeline text)
returns bigint language plpgsql security definer set search_path = '' as $$
declare
    tried bigint;
begin
    update gristmill.outbox o set failed_at = null, attempts = 0, due_at = clock_timestamp(), since = clock_timestamp()
    where o.pipeline = $1 and o.failed_at is not null;
    get diagnostics tried = row_count;
    return tried;
end
$$;

revoke all on gristmill.outbox from public;
revoke all on function gristmill.signal_end(), gristmill.redeliver(text) from public;

do $$
begin
    if exists (select 1 from pg_catalog.pg_roles where rolname = 'service_role') then
        grant execute on function gristmill.redeliver(text) to service_role;
    end if;
end
$$;

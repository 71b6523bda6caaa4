-- Triggers may be installed before their pipeline's first start, and then raised a warning for every statement of the application.
-- And what operators look at said too little or too much: a lane that pauses was known to its own worker alone, and the view of the
-- backlog counted finished jobs and took retries that are not due yet for young.

create or replace function gristmill.open_jobs(
    p_pipeline text, p_keys jsonb[], p_tenants text[], p_run_at timestamptz[], p_priority int, p_by_person boolean
) returns bigint
language plpgsql security definer set search_path = '' as $$
declare
    settings gristmill.pipelines;
    opened bigint;
begin
    select * into settings from gristmill.pipelines where name = p_pipeline;
    if not found then
        -- Of a pipeline that has not started yet, its census or its sweep will see the rows; only a person has to be told.
        if not p_by_person then
            return 0;
        end if;
        raise exception 'gristmill knows no pipeline "%"', p_pipeline
            using errcode = 'undefined_object', hint = 'a pipeline is known once a worker has started with it';
    end if;
    if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
        insert into gristmill.announcements (pipeline, source_key, tenant, run_at, priority, by_person)
        select p_pipeline, given.key, given.tenant, given.run_at, p_priority, p_by_person
        from unnest(p_keys, p_tenants, p_run_at) as given (key, tenant, run_at)
        where given.key is not null and not jsonb_path_exists(given.key, '$[*] ? (@ == null)');
    else
        insert into gristmill.embedding_jobs as job
            (pipeline, source_key, tenant, state, priority, run_at, max_attempts)
        select p_pipeline, asked.key, coalesce(asked.tenant, ''),
               case when settings.grace > '0' and not p_by_person then 'waiting' else 'pending' end,
               p_priority,
               case when settings.grace > '0' and not p_by_person then clock_timestamp() + settings.grace
                    else greatest(least(coalesce(asked.run_at, clock_timestamp()), clock_timestamp()), '1970-01-02') end,
               settings.max_attempts
        from (
            select distinct on (key) key, tenant, run_at
            from unnest(p_keys, p_tenants, p_run_at) as given (key, tenant, run_at)
            -- A row without a key cannot be found again.
            where key is not null and not jsonb_path_exists(key, '$[*] ? (@ == null)')
            order by key
        ) as asked
        order by asked.key
        on conflict (pipeline, source_key) do update set
            revision = job.revision + 1,
            tenant = case when excluded.tenant = '' then job.tenant else excluded.tenant end,
            priority = greatest(job.priority, excluded.priority),
            state = case when job.state in ('processing', 'pending') then job.state else excluded.state end,
            run_at = case when job.state in ('processing', 'pending') then job.run_at else excluded.run_at end,
            max_attempts = excluded.max_attempts,
            -- What an attempt under way has parked is worth a look when it finds itself overtaken.
            starts = case when job.state = 'processing' then job.starts else 0 end,
            attempt = 0, crashes = 0, crashes_alone = 0, snoozed_since = null,
            reason = null, error_kind = null, mirror_error = null, need_stands = false,
            opened_at = clock_timestamp(), finished_at = null
        where p_by_person or not (job.state = 'cancelled' and job.error_kind = 'person');
    end if;
    get diagnostics opened = row_count;
    -- No payload and one channel: the notifications of a transaction become one.
    if settings.notify and opened > 0 then
        perform pg_notify('gristmill_jobs', '');
    end if;
    return opened;
end
$$;

alter table gristmill.workers add column paused_lanes jsonb not null default '[]';

-- What `verify` holds the application's own count against; null of jobs that were done before.
alter table gristmill.embedding_jobs add column tokens_of_text bigint;

-- What somebody may still have to see to, and since when the oldest has been due: a job that was tried counts from its opening, one
-- that waits for a person's word not at all. Each state has an index of its own, so that finished jobs cost nothing.
create or replace view gristmill.backlog with (security_invoker = true) as
    with open as (
        select pipeline, state, run_at, starts, opened_at from gristmill.embedding_jobs where state = 'pending'
        union all select pipeline, state, run_at, starts, opened_at from gristmill.embedding_jobs where state = 'processing'
        union all select pipeline, state, run_at, starts, opened_at from gristmill.embedding_jobs where state = 'waiting'
        union all select pipeline, state, null, starts, opened_at from gristmill.embedding_jobs where state = 'failed'
    )
    select pipeline, state, count(*) as jobs,
           min(least(run_at, case when starts > 0 then opened_at end)) filter (where run_at <= clock_timestamp() or run_at < 'infinity' and starts > 0) as oldest
    from open group by pipeline, state;

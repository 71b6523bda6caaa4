-- What is announced under repeatable read or serializable must not be lost: there an existing job cannot be opened once somebody
-- else has touched it since the transaction began, and the attempt would cost the application its transaction. A line that is
-- only ever inserted conflicts with nothing; a worker folds it into its job a moment later.

create table gristmill.announcements (
    id bigint generated always as identity primary key,
    pipeline text not null,
    source_key jsonb not null,
    tenant text,
    run_at timestamptz,
    priority int not null,
    by_person boolean not null
);
revoke all on gristmill.announcements from public;

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

-- Keys read the same whatever a session's settings are.
alter function gristmill.key_of(anyelement) set intervalstyle = 'postgres';
alter function gristmill.key_of(anyelement) set extra_float_digits = '1';
alter function gristmill.key_of(anyelement) set bytea_output = 'hex';
alter function gristmill.key_of(anyelement) set lc_monetary = 'C';
alter function gristmill.key_of(anyelement) set quote_all_identifiers = off;

-- Whether a key can be compared with its column at all: one bad key must not hold up a statement over many.
create function gristmill.fits(value text, type text) returns boolean
language plpgsql stable set search_path = '' as $$
begin
    execute format('select %L::%s', value, type);
    return true;
exception when data_exception or integrity_constraint_violation or plpgsql_error then
    return false;
end
$$;
revoke all on function gristmill.fits(text, text) from public;

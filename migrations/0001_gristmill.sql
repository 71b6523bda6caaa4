-- Everything Gristmill keeps for itself lives in one schema, so that an application's own tables stay as they are and one
-- `drop schema gristmill cascade` takes us out again.

revoke all on schema gristmill from public;

-- What is registered. A worker claims only where its own generation is the one that stands here.
create table gristmill.pipelines (
    name text primary key,
    generation text not null,
    source_table text not null,
    max_attempts smallint not null default 5 check (max_attempts > 0),
    grace interval not null default '0',
    notify boolean not null default true,
    existing text check (existing in ('adopt', 'backfill', 'ignore')),
    -- The rows that were there before have a job each.
    census_done boolean not null default false,
    census_after jsonb,
    paused_at timestamptz,
    paused_reason text,
    registered_at timestamptz not null default now(),
    accepted_at timestamptz
);

-- A copy of the database (a restored dump, a branch) is not this database: its workers stay away until a person confirms.
create table gristmill.installation (
    only_one boolean primary key default true check (only_one),
    identity text not null,
    confirmed_at timestamptz not null default now()
);

create table gristmill.workers (
    id uuid primary key,
    name text not null,
    version text not null,
    slots int not null,
    started_at timestamptz not null default now(),
    seen_at timestamptz not null default now(),
    stopped_at timestamptz
);

-- One row per source row and pipeline, for life: the row's sync state.
create table gristmill.embedding_jobs (
    id bigint generated always as identity primary key,
    pipeline text not null,
    source_key jsonb not null
        check (jsonb_typeof(source_key) = 'array' and not jsonb_path_exists(source_key, '$[*] ? (@ == null)')),
    tenant text not null default '',
    state text not null default 'pending'
        check (state in ('waiting', 'pending', 'processing', 'completed', 'skipped', 'failed', 'cancelled')),
    priority int not null default 0,
    run_at timestamptz not null default now(),
    revision bigint not null default 1,
    attempt smallint not null default 0,
    max_attempts smallint not null default 5,
    -- How often this revision was claimed: from the second claim on, parked vectors are worth looking up.
    starts int not null default 0,
    crashes smallint not null default 0,
    -- Crashes with nothing else in the dead worker's hands: only these tell that the job is to blame.
    crashes_alone smallint not null default 0,
    alone boolean not null default false,
    snoozed_since timestamptz,
    -- Embed everything again at the next attempt, whatever is remembered.
    fresh boolean not null default false,
    lease_id uuid,
    lease_until timestamptz,
    worker uuid,
    stage text,
    -- What the target holds: vectors of this generation, for the content of this fingerprint, of texts with these digests.
    generation text,
    fingerprint bytea,
    digests bytea,
    -- The row's need stood even after our own commit: it cannot be the reason for another opening.
    need_stands boolean not null default false,
    kept jsonb,
    chunks int,
    tokens bigint,
    pages int,
    ms int,
    reader text,
    reason text,
    error_kind text,
    mirror_error text,
    traceparent text,
    created_at timestamptz not null default now(),
    opened_at timestamptz not null default now(),
    started_at timestamptz,
    finished_at timestamptz,
    unique (pipeline, source_key),
    check ((state = 'processing') = (lease_id is not null)),
    check ((lease_id is null) = (lease_until is null)),
    check ((state = 'failed') <= (reason is not null))
) with (fillfactor = 80);

create index embedding_jobs_claim on gristmill.embedding_jobs (pipeline, tenant, (-priority), run_at, id)
    where state = 'pending';
-- Jobs whose workers died are few, and looked for every second.
create index embedding_jobs_crashed on gristmill.embedding_jobs (pipeline, crashes, run_at, id)
    where state = 'pending' and crashes > 0;
create index embedding_jobs_due on gristmill.embedding_jobs (run_at) where state = 'waiting';
create index embedding_jobs_leases on gristmill.embedding_jobs (lease_until) where state = 'processing';
create index embedding_jobs_failed on gristmill.embedding_jobs (pipeline, finished_at) where state = 'failed';

-- The timeline. A first attempt that ends well is on the job row alone.
create table gristmill.job_attempts (
    id bigint generated always as identity primary key,
    job_id bigint not null references gristmill.embedding_jobs (id) on delete cascade,
    revision bigint not null,
    attempt smallint not null,
    worker uuid,
    started_at timestamptz,
    ended_at timestamptz not null default now(),
    outcome text not null,
    error_kind text,
    reason text,
    stages jsonb
);
create index job_attempts_job on gristmill.job_attempts (job_id);
create index job_attempts_age on gristmill.job_attempts (ended_at);

-- Paid vectors whose job still waits for others. Unlogged: a killed worker finds them again; a crashed database pays again.
create unlogged table gristmill.vector_cache (
    tenant text not null,
    model text not null,
    digest bytea not null check (length(digest) = 32),
    vector bytea not null,
    kept_at timestamptz not null default now(),
    primary key (tenant, model, digest)
);
create index vector_cache_age on gristmill.vector_cache (kept_at);

-- Dated prices. The one with the latest start not in the future holds, so validity ranges cannot overlap.
create table gristmill.prices (
    id bigint generated always as identity primary key,
    provider text not null,
    model text not null,
    meter text not null,
    usd numeric not null check (usd >= 0),
    valid_from timestamptz not null,
    unique (provider, model, meter, valid_from)
);

-- The intent before a paid call, the result after. A call without a result of a worker that is gone is `unknown`.
create table gristmill.provider_calls (
    id uuid primary key,
    worker uuid not null,
    provider text not null,
    model text not null,
    inputs int not null,
    tokens_estimated bigint not null,
    started_at timestamptz not null default now(),
    finished_at timestamptz,
    outcome text not null default 'intent' check (outcome in ('intent', 'paid', 'refused', 'failed', 'unknown')),
    request_id text,
    tokens bigint,
    cost numeric,
    price_id bigint references gristmill.prices (id),
    error_kind text
);
create index provider_calls_open on gristmill.provider_calls (started_at) where outcome = 'intent';
create index provider_calls_age on gristmill.provider_calls (started_at);

create table gristmill.provider_call_jobs (
    call_id uuid not null references gristmill.provider_calls (id) on delete cascade,
    job_id bigint not null,
    revision bigint not null,
    tenant text not null,
    inputs int not null,
    tokens bigint not null,
    cost numeric,
    primary key (call_id, job_id, revision)
);
create index provider_call_jobs_job on gristmill.provider_call_jobs (job_id, revision);

-- Who caused what cost: append-only, once per job, revision and meter. It outlives the job.
create table gristmill.usage_events (
    id bigint generated always as identity primary key,
    job_id bigint not null,
    revision bigint not null,
    pipeline text not null,
    tenant text not null,
    provider text not null,
    model text not null,
    meter text not null,
    quantity numeric not null check (quantity > 0),
    unit text not null,
    price_id bigint references gristmill.prices (id),
    -- Null is an alarm: the price was not known. Never 0 by default.
    cost numeric,
    at timestamptz not null default now(),
    unique (job_id, revision, meter)
);
create index usage_events_tenant on gristmill.usage_events (tenant, at);
create index usage_events_at on gristmill.usage_events (at);

create function gristmill.refuse_change() returns trigger
language plpgsql set search_path = '' as $$
begin
    -- Forgetting a tenant leaves a pseudonym: the only update ever.
    if tg_op = 'UPDATE' and current_setting('gristmill.forgetting', true) = 'on'
        and to_jsonb(new) - 'tenant' = to_jsonb(old) - 'tenant' then
        return new;
    end if;
    raise exception 'gristmill.usage_events is append-only';
end
$$;
create trigger usage_events_append_only before update or delete on gristmill.usage_events
    for each row execute function gristmill.refuse_change();
create trigger usage_events_stay before truncate on gristmill.usage_events
    for each statement execute function gristmill.refuse_change();

-- A pipeline's key, from whatever a caller has: a JSON array is one part for each column, anything else the text of the only one.
create function gristmill.key_of(value anyelement) returns jsonb
language sql stable set search_path = '' set timezone = 'UTC' set datestyle = 'ISO, MDY' as $$
    select case
        when to_jsonb(value) is null or jsonb_typeof(to_jsonb(value)) = 'null' then null
        when pg_typeof(value) in ('jsonb'::regtype, 'json'::regtype) and jsonb_typeof(to_jsonb(value)) = 'array'
            then (select jsonb_agg(part order by nth) from jsonb_array_elements_text(to_jsonb(value)) with ordinality as p (part, nth))
        -- A JSON string without its quotes.
        when pg_typeof(value) in ('jsonb'::regtype, 'json'::regtype) then jsonb_build_array(to_jsonb(value) #>> '{}')
        else jsonb_build_array(value::text)
    end
$$;

-- Opens jobs: what triggers, the sweep and `enqueue` have in common. Touches nothing but the jobs' own rows.
create function gristmill.open_jobs(
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
            using hint = 'a pipeline is known once a worker has started with it';
    end if;
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
    get diagnostics opened = row_count;
    -- No payload and one channel: the notifications of a transaction become one.
    if settings.notify and opened > 0 then
        perform pg_notify('gristmill_jobs', '');
    end if;
    return opened;
end
$$;

-- For applications that announce rows themselves. `tenant` may be left out: the worker reads it from the row.
create function gristmill.enqueue(pipeline text, key anyelement, priority int default 0, tenant text default null)
returns bigint language sql security definer set search_path = '' as $$
    select gristmill.open_jobs($1, array[gristmill.key_of($2)], array[$4], array[null::timestamptz], $3, true)
$$;
create function gristmill.enqueue(pipeline text, key text, priority int default 0, tenant text default null)
returns bigint language sql security definer set search_path = '' as $$
    select gristmill.open_jobs($1, array[jsonb_build_array($2)], array[$4], array[null::timestamptz], $3, true)
$$;

-- Opens finished jobs again and lets waiting ones go at once. `fresh` pays for every chunk, not only for what changed.
create function gristmill.retry(job bigint, fresh boolean default false)
returns boolean language plpgsql security definer set search_path = '' as $$
declare
    wake boolean;
begin
    update gristmill.embedding_jobs j set
        revision = j.revision + 1, state = 'pending', run_at = clock_timestamp(),
        attempt = 0, starts = 0, crashes = 0, crashes_alone = 0, snoozed_since = null,
        fresh = $2 or j.fresh, reason = null, error_kind = null, mirror_error = null, need_stands = false,
        opened_at = clock_timestamp(), finished_at = null
    where j.id = $1 and j.state in ('completed', 'skipped', 'failed', 'cancelled', 'waiting');
    wake := found;
    if wake then
        perform pg_notify('gristmill_jobs', '');
    end if;
    return wake;
end
$$;

-- A person's word: only a person opens it again. What is in the target stays.
create function gristmill.cancel(job bigint)
returns boolean language plpgsql security definer set search_path = '' as $$
begin
    update gristmill.embedding_jobs j set
        state = 'cancelled', error_kind = 'person', reason = 'cancelled by a person',
        lease_id = null, lease_until = null, worker = null, stage = null, finished_at = clock_timestamp()
    where j.id = $1 and j.state in ('waiting', 'pending', 'processing', 'failed');
    return found;
end
$$;

create function gristmill.pause(pipeline text, reason text default 'paused by a person')
returns boolean language plpgsql security definer set search_path = '' as $$
begin
    update gristmill.pipelines p set paused_at = clock_timestamp(), paused_reason = $2 where p.name = $1;
    return found;
end
$$;

create function gristmill.resume(pipeline text)
returns boolean language plpgsql security definer set search_path = '' as $$
begin
    update gristmill.pipelines p set paused_at = null, paused_reason = null where p.name = $1;
    if found then
        perform pg_notify('gristmill_jobs', '');
        return true;
    end if;
    return false;
end
$$;

-- Forgets what jobs know; refused by the trigger-free check below while the rows are still in a set. In the ledger the
-- tenant becomes a pseudonym.
create function gristmill.forget_jobs(p_jobs bigint[], p_tenant text)
returns bigint language plpgsql security definer set search_path = '' as $$
declare
    gone bigint;
    -- One for all of its lines, so that they still add up.
    pseudonym text := 'forgotten-' || left(encode(sha256(convert_to(gen_random_uuid()::text, 'UTF8')), 'hex'), 12);
begin
    if exists (select 1 from gristmill.embedding_jobs j where j.id = any (p_jobs)
               and (j.state <> 'cancelled' or j.error_kind is distinct from 'left')) then
        raise exception 'rows of these jobs are still in a set'
            using hint = 'delete the source rows first, or the sweep would bring them back';
    end if;
    delete from gristmill.embedding_jobs j where j.id = any (p_jobs);
    get diagnostics gone = row_count;
    if p_tenant is not null and p_tenant <> '' then
        delete from gristmill.vector_cache c where c.tenant = p_tenant;
        perform set_config('gristmill.forgetting', 'on', true);
        update gristmill.usage_events u set tenant = pseudonym where u.tenant = p_tenant;
        update gristmill.provider_call_jobs s set tenant = pseudonym where s.tenant = p_tenant;
        perform set_config('gristmill.forgetting', '', true);
    end if;
    return gone;
end
$$;

create function gristmill.forget(tenant text)
returns bigint language sql security definer set search_path = '' as $$
    select gristmill.forget_jobs(
        coalesce((select array_agg(j.id) from gristmill.embedding_jobs j where j.tenant = $1), '{}'), $1)
$$;
create function gristmill.forget(pipeline text, key anyelement)
returns bigint language sql security definer set search_path = '' as $$
    select gristmill.forget_jobs(
        coalesce((select array_agg(j.id) from gristmill.embedding_jobs j
                  where j.pipeline = $1 and j.source_key = gristmill.key_of($2)), '{}'), null)
$$;
create function gristmill.forget(pipeline text, key text)
returns bigint language sql security definer set search_path = '' as $$
    select gristmill.forget_jobs(
        coalesce((select array_agg(j.id) from gristmill.embedding_jobs j
                  where j.pipeline = $1 and j.source_key = jsonb_build_array($2)), '{}'), null)
$$;

create view gristmill.backlog with (security_invoker = true) as
    select pipeline, state, count(*) as jobs, min(run_at) filter (where state in ('pending', 'waiting')) as oldest
    from gristmill.embedding_jobs group by pipeline, state;

create view gristmill.usage_by_day with (security_invoker = true) as
    select date_trunc('day', at, 'UTC') as day, tenant, pipeline, provider, model, meter, unit,
           sum(quantity) as quantity, sum(cost) as cost, count(*) filter (where cost is null) as unpriced
    from gristmill.usage_events group by 1, 2, 3, 4, 5, 6, 7;

revoke all on all tables in schema gristmill from public;
revoke all on all functions in schema gristmill from public;
revoke all on all sequences in schema gristmill from public;

-- Supabase's server role may ask and look; its users get nothing here: triggers work without any right of theirs.
do $$
begin
    if exists (select 1 from pg_roles where rolname = 'service_role') then
        grant usage on schema gristmill to service_role;
        grant select on gristmill.embedding_jobs, gristmill.job_attempts, gristmill.pipelines, gristmill.usage_events,
            gristmill.backlog, gristmill.usage_by_day to service_role;
        grant execute on function gristmill.enqueue(text, anyelement, int, text), gristmill.enqueue(text, text, int, text),
            gristmill.retry(bigint, boolean), gristmill.cancel(bigint), gristmill.pause(text, text), gristmill.resume(text),
            gristmill.forget(text), gristmill.forget(text, anyelement), gristmill.forget(text, text) to service_role;
    end if;
end
$$;

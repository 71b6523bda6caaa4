-- A row may ask for itself and be served by the application after all, before a worker comes to it: within the grace, say. Its
-- vectors are there and paid for then. To know such a job from one that a person or a change of content opened, it is noted.

alter table gristmill.embedding_jobs add column by_need boolean not null default false;

-- Opens jobs of rows that ask for themselves, and for no other reason.
create function gristmill.open_needed(p_pipeline text, p_keys jsonb[], p_tenants text[], p_run_at timestamptz[])
returns bigint language plpgsql security definer set search_path = '' as $$
declare
    -- Open for a reason of their own.
    others jsonb[];
    opened bigint;
begin
    select coalesce(array_agg(source_key), '{}') into others from gristmill.embedding_jobs
    where pipeline = p_pipeline and source_key = any (p_keys) and state in ('waiting', 'pending', 'processing') and not by_need;
    opened := gristmill.open_jobs(p_pipeline, p_keys, p_tenants, p_run_at, 0, false);
    update gristmill.embedding_jobs set by_need = true
    where pipeline = p_pipeline and source_key = any (p_keys) and source_key <> all (others) and state in ('waiting', 'pending');
    return opened;
end
$$;
revoke all on function gristmill.open_needed(text, jsonb[], text[], timestamptz[]) from public;

-- Whatever else opens the job is a reason of its own.
create function gristmill.another_reason() returns trigger
language plpgsql set search_path = '' as $$
begin
    new.by_need := false;
    return new;
end
$$;
revoke all on function gristmill.another_reason() from public;
create trigger embedding_jobs_another_reason before update of revision on gristmill.embedding_jobs
    for each row when (old.by_need and new.revision > old.revision) execute function gristmill.another_reason();

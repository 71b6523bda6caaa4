-- A job that failed is finished: cancelling it took its reason away, and with it what `jobs retry --kind` finds it by.

create or replace function gristmill.cancel(job bigint)
returns boolean language plpgsql security definer set search_path = '' as $$
begin
    update gristmill.embedding_jobs j set
        state = 'cancelled', error_kind = 'person', reason = 'cancelled by a person',
        lease_id = null, lease_until = null, worker = null, stage = null, finished_at = clock_timestamp()
    where j.id = $1 and j.state in ('waiting', 'pending', 'processing');
    return found;
end
$$;

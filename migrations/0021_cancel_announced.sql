-- What was announced under repeatable read waits to be folded into its job. A person's word that was there before a job was cancelled
-- opened it again a moment after: the later word is the one that counts.

create or replace function gristmill.cancel(job bigint)
returns boolean language plpgsql security definer set search_path = '' as $$
begin
    update gristmill.embedding_jobs j set
        state = 'cancelled', error_kind = 'person', reason = 'cancelled by a person',
        lease_id = null, lease_until = null, worker = null, stage = null, finished_at = clock_timestamp()
    where j.id = $1 and j.state in ('waiting', 'pending', 'processing');
    if not found then
        return false;
    end if;
    -- Whoever folds one just now is waited for, and passes over the job that is held here.
    delete from gristmill.announcements a using gristmill.embedding_jobs j
    where j.id = $1 and a.pipeline = j.pipeline and a.source_key = j.source_key and a.by_person;
    return true;
end
$$;

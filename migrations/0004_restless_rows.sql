-- A row that changes again and again while it is embedded was tried again at once each time, and each time its new text was paid
-- for: one updated every second had no end and no limit. Jobs count now how often in a row that happened, and wait.

alter table gristmill.embedding_jobs add column stales smallint not null default 0;

-- The changes such a row is announced with must not wake it: they are what it waits out. Who sets `stales` anew means it.
create function gristmill.stay_waiting() returns trigger
language plpgsql set search_path = '' as $$
begin
    new.state := 'waiting';
    new.run_at := old.run_at;
    new.reason := old.reason;
    new.error_kind := old.error_kind;
    return new;
end
$$;
revoke all on function gristmill.stay_waiting() from public;
create trigger embedding_jobs_stay_waiting before update of state on gristmill.embedding_jobs
    for each row when (
        old.state = 'waiting' and old.error_kind = 'stale' and new.stales = old.stales
        and new.revision > old.revision and new.state in ('waiting', 'pending') and new.run_at < old.run_at
    ) execute function gristmill.stay_waiting();

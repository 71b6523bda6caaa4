-- A search pays for its question, and belongs to no job. Its call has one share, of job 0 and of the tenant on whose account it is, so
-- that its cost is counted and forgotten as all others are; and says what it is for, so that nobody takes it for work on a row.
alter table gristmill.provider_calls
    add column purpose text not null default 'jobs' check (purpose in ('jobs', 'search'));

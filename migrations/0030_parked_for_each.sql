-- Two jobs of a tenant that paid for an equal text, each for its own, had one parked vector between them: where neither could write it,
-- the first that was tried again took it, and the other paid once more. Each job's payment is its own entry now; those that equal
-- texts may use again are job 0's, as are those parked before anybody noted whose they are.
update gristmill.vector_cache set job_id = 0 where reusable or job_id is null;
alter table gristmill.vector_cache
    alter column job_id set default 0,
    alter column job_id set not null,
    drop constraint vector_cache_pkey,
    add primary key (tenant, model, digest, job_id);

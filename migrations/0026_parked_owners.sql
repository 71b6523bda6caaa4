-- A vector that is parked is charged for by whoever writes it, and two jobs of a tenant with an equal text could both find it: both were
-- charged for what was paid once. Now it says whose job bought it. That one is charged; for another it is free while that one is open, and
-- once it is not, the first that comes makes the vector its own.
alter table gristmill.vector_cache add column job_id bigint;

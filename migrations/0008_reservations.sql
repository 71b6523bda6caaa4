-- A limit is asked before money is spent, and what jobs in hand are about to spend has to count, or many of them would exceed it
-- together. A reservation counts while its job is held under the lease that it was made under; the commit that books the job's usage
-- ends that lease, so it is never counted twice.

create table gristmill.reservations (
    job_id bigint primary key,
    lease_id uuid not null,
    limit_name text not null,
    tenant text not null,
    tokens bigint not null check (tokens >= 0),
    usd numeric not null check (usd >= 0)
);
revoke all on gristmill.reservations from public;
create index reservations_tenant on gristmill.reservations (limit_name, tenant);

-- Amounts that an application keeps as whole numbers, like integer cents, would each be rounded to a lie. Here the exact sum is
-- kept, and each call returns the whole units that its amount completes.

create table gristmill.carry (
    name text not null,
    tenant text not null,
    -- Of all amounts so far.
    total numeric not null,
    primary key (name, tenant)
);
revoke all on gristmill.carry from public;

-- Adds an amount to a sum and returns by how many whole units that sum grew; over all calls these add up to the sum, rounded down.
-- Null for an amount that is not known, which is not added.
create function gristmill.carry(name text, tenant text, amount numeric) returns bigint
language sql security definer set search_path = '' as $$
    insert into gristmill.carry as kept (name, tenant, total)
    select $1, coalesce($2, ''), $3 where $3 is not null
    on conflict on constraint carry_pkey do update set total = kept.total + excluded.total
    returning (floor(kept.total) - floor(kept.total - $3))::bigint
$$;
revoke all on function gristmill.carry(text, text, numeric) from public;

do $$
begin
    if exists (select 1 from pg_catalog.pg_roles where rolname = 'service_role') then
        grant execute on function gristmill.carry(text, text, numeric) to service_role;
    end if;
end
$$;

-- A tenant that is forgotten leaves no sum behind.
create or replace function gristmill.forget_jobs(p_jobs bigint[], p_tenant text)
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
        delete from gristmill.carry c where c.tenant = p_tenant;
        perform set_config('gristmill.forgetting', 'on', true);
        update gristmill.usage_events u set tenant = pseudonym where u.tenant = p_tenant;
        update gristmill.provider_call_jobs s set tenant = pseudonym where s.tenant = p_tenant;
        perform set_config('gristmill.forgetting', '', true);
    end if;
    return gone;
end
$$;

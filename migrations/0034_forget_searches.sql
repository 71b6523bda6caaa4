-- A search belongs to no worker, so that a tenant could be forgotten while one of his was under way, and had a trace again when it ended:
-- the share of its call, and what it spent under a ceiling.
create or replace function gristmill.forget_jobs(p_jobs bigint[], p_tenant text)
returns bigint language plpgsql security definer set search_path = '' as $$
declare
    gone bigint;
    tenants text[];
    -- One for all of its lines, so that they still add up.
    pseudonym text := 'forgotten-' || left(encode(sha256(convert_to(gen_random_uuid()::text, 'UTF8')), 'hex'), 12);
begin
    perform from gristmill.embedding_jobs j where j.id = any (p_jobs) order by j.id for update;
    if exists (select 1 from gristmill.embedding_jobs j where j.id = any (p_jobs)
               and (j.state <> 'cancelled' or j.error_kind is distinct from 'left')) then
        raise exception 'rows of these jobs are still in a set'
            using hint = 'delete the source rows first, or the sweep would bring them back';
    end if;
    if exists (select from gristmill.provider_calls c join gristmill.provider_call_jobs s on s.call_id = c.id
               join gristmill.workers w on w.id = c.worker
               where c.outcome = 'intent' and (s.job_id = any (p_jobs) or s.tenant = nullif(p_tenant, ''))
                 and w.stopped_at is null and w.seen_at > clock_timestamp() - interval '1 minute') then
        raise exception 'a call for these jobs is under way' using hint = 'its answer is kept when it comes: try again in a moment';
    end if;
    if exists (select from gristmill.provider_calls c join gristmill.provider_call_jobs s on s.call_id = c.id
               where c.outcome = 'intent' and c.purpose = 'search' and s.tenant = nullif(p_tenant, '')) then
        raise exception 'a search of this tenant is under way'
            using hint = 'try again when it has ended; of one that was killed, a running worker marks the call as unknown within a few minutes';
    end if;
    select coalesce(array_agg(distinct j.tenant), '{}') into tenants from gristmill.embedding_jobs j where j.id = any (p_jobs);
    delete from gristmill.announcements a using gristmill.embedding_jobs j
    where j.id = any (p_jobs) and a.pipeline = j.pipeline and a.source_key = j.source_key;
    update gristmill.pipelines p set census_after = null from gristmill.embedding_jobs j
    where j.id = any (p_jobs) and p.name = j.pipeline and p.census_after = j.source_key;
    delete from gristmill.reservations r where r.job_id = any (p_jobs) or r.tenant = nullif(p_tenant, '');
    -- Of the pipeline as a whole it stays counted.
    delete from gristmill.spending s where s.scope = 'tenant ' || nullif(p_tenant, '');
    -- Of whose texts a tenant's parked vectors are, nobody knows: they are bought again where they are still wanted.
    delete from gristmill.vector_cache c where c.tenant = any (tenants) or c.tenant = nullif(p_tenant, '');
    delete from gristmill.embedding_jobs j where j.id = any (p_jobs);
    get diagnostics gone = row_count;
    if p_tenant is not null and p_tenant <> '' then
        delete from gristmill.announcements a where a.tenant = p_tenant;
        delete from gristmill.carry c where c.tenant = p_tenant;
        -- A living worker says it anew; of a dead one nobody asks.
        update gristmill.workers w set paused_lanes = '[]'
        where exists (select from jsonb_array_elements(w.paused_lanes) as lane where lane -> 'tenants' ? p_tenant);
        perform set_config('gristmill.forgetting', 'on', true);
        update gristmill.usage_events u set tenant = pseudonym where u.tenant = p_tenant;
        update gristmill.provider_call_jobs s set tenant = pseudonym where s.tenant = p_tenant;
        perform set_config('gristmill.forgetting', '', true);
    end if;
    return gone;
end
$$;

-- A ceiling of money is asked before each paid request, by every worker: what was spent today has to be one row to lock and not a sum
-- over the calls. Only pipelines with a ceiling have rows here. What is about to be spent is added before the request and put right
-- after it; what a worker did not live to put right stays as it was estimated, since it may have been paid.

create table gristmill.spending (
    pipeline text not null,
    -- '' is the whole pipeline, 'tenant x' one of its tenants.
    scope text not null,
    -- In UTC, by the database's clock.
    day date not null,
    usd numeric not null default 0 check (usd >= 0),
    primary key (pipeline, scope, day)
);
revoke all on gristmill.spending from public;

-- Adds what is about to be spent, unless a ceiling would be exceeded: then says which, how much of it is spent and for how many seconds
-- it stands. A ceiling that is null is none.
create function gristmill.spend(
    p_pipeline text, p_tenant text, p_usd numeric, p_day numeric, p_month numeric, p_tenant_day numeric, p_tenant_month numeric,
    out on_day date, out ceiling text, out spent numeric, out seconds float8
)
language plpgsql set search_path = '' as $$
declare
    asked timestamp := clock_timestamp() at time zone 'UTC';
    scopes text[] := case when p_tenant_day is null and p_tenant_month is null then array[''] else array['', 'tenant ' || p_tenant] end;
    this_scope text;
    today numeric;
    this_month numeric;
begin
    on_day := asked::date;
    -- The whole first, then the tenant: whoever asks at the same time waits here.
    foreach this_scope in array scopes loop
        insert into gristmill.spending as known (pipeline, scope, day) values (p_pipeline, this_scope, on_day)
        on conflict (pipeline, scope, day) do update set usd = known.usd;
    end loop;
    foreach this_scope in array scopes loop
        select coalesce(sum(s.usd) filter (where s.day = on_day), 0), coalesce(sum(s.usd), 0) into today, this_month
        from gristmill.spending as s
        where s.pipeline = p_pipeline and s.scope = this_scope and s.day >= date_trunc('month', asked)::date;
        if today + p_usd > (case when this_scope = '' then p_day else p_tenant_day end) then
            ceiling := case when this_scope = '' then 'usd_per_day' else 'tenant_usd_per_day' end;
            spent := today;
            seconds := extract(epoch from date_trunc('day', asked) + interval '1 day' - asked);
        end if;
        if this_month + p_usd > (case when this_scope = '' then p_month else p_tenant_month end) then
            ceiling := case when this_scope = '' then 'usd_per_month' else 'tenant_usd_per_month' end;
            spent := this_month;
            seconds := extract(epoch from date_trunc('month', asked) + interval '1 month' - asked);
        end if;
        if ceiling is not null then
            return;
        end if;
    end loop;
    update gristmill.spending as s set usd = s.usd + p_usd
    where s.pipeline = p_pipeline and s.scope = any (scopes) and s.day = on_day;
end
$$;
revoke all on function gristmill.spend(text, text, numeric, numeric, numeric, numeric, numeric) from public;

-- A ceiling counted from the moment at which it was written down: who set one because of this month's bill could spend as much again. Where a
-- pipeline, or its tenant, asks for the first time, what the ledger says of the month counts as spent.

create function gristmill.spent_before(p_pipeline text, p_scope text, p_begins date) returns table (day date, usd numeric)
language plpgsql stable set search_path = '' as $$
begin
    -- Two statements, each with an index of its own.
    if p_scope = '' then
        return query select (event.at at time zone 'UTC')::date, sum(event.cost) from gristmill.usage_events as event
            where event.pipeline = p_pipeline and event.at >= p_begins::timestamp at time zone 'UTC' and event.cost > 0 group by 1;
    else
        return query select (event.at at time zone 'UTC')::date, sum(event.cost) from gristmill.usage_events as event
            where event.tenant = substr(p_scope, length('tenant ') + 1) and event.at >= p_begins::timestamp at time zone 'UTC'
              and event.pipeline = p_pipeline and event.cost > 0 group by 1;
    end if;
end
$$;
revoke all on function gristmill.spent_before(text, text, date) from public;

-- As before, but for the first time.
create or replace function gristmill.spend(
    p_pipeline text, p_tenant text, p_usd numeric, p_day numeric, p_month numeric, p_tenant_day numeric, p_tenant_month numeric,
    out on_day date, out ceiling text, out spent numeric, out reserved numeric, out seconds float8
)
language plpgsql set search_path = '' as $$
declare
    now_at timestamptz := clock_timestamp();
    asked timestamp := now_at at time zone 'UTC';
    gone timestamptz := now_at - interval '15 minutes';
    scopes text[] := case when p_tenant_day is null and p_tenant_month is null then array[''] else array['', 'tenant ' || p_tenant] end;
    this_scope text;
    is_first boolean;
    begins date := date_trunc('month', asked)::date;
    over record;
begin
    on_day := asked::date;
    -- The whole first, then the tenant: whoever asks at the same time waits here.
    foreach this_scope in array scopes loop
        insert into gristmill.spending as known (pipeline, scope, day) values (p_pipeline, this_scope, on_day)
        on conflict (pipeline, scope, day) do update set usd = known.usd returning known.xmax = 0 into is_first;
        if is_first and not exists (select from gristmill.spending as s
                                    where s.pipeline = p_pipeline and s.scope = this_scope and s.day <> on_day) then
            insert into gristmill.spending as known (pipeline, scope, day, usd)
            select p_pipeline, this_scope, before.day, before.usd from gristmill.spent_before(p_pipeline, this_scope, begins) as before
            on conflict (pipeline, scope, day) do update set usd = known.usd + excluded.usd;
        end if;
    end loop;
    foreach this_scope in array scopes loop
        -- Of the day and the month, the one that stands longer.
        select term.ceiling, term.usd - term.reserved as spent, term.reserved,
               case when term.usd - term.reserved + p_usd > term.most
                    then extract(epoch from term.ends - asked)
                    else greatest(least(extract(epoch from now_at - term.reserved_at), 60), 2) end as seconds
        into over
        from (
            select case when this_scope = '' then '' else 'tenant_' end || period.name as ceiling, period.most, period.ends,
                   coalesce(sum(s.usd), 0) as usd,
                   coalesce(sum(least(s.reserved, s.usd)) filter (where s.reserved_at > gone), 0) as reserved,
                   max(s.reserved_at) filter (where s.reserved_at > gone) as reserved_at
            from (values
                ('usd_per_day', case when this_scope = '' then p_day else p_tenant_day end,
                 on_day, date_trunc('day', asked) + interval '1 day'),
                ('usd_per_month', case when this_scope = '' then p_month else p_tenant_month end,
                 begins, date_trunc('month', asked) + interval '1 month')
            ) as period (name, most, begins, ends)
            left join gristmill.spending as s on s.pipeline = p_pipeline and s.scope = this_scope and s.day >= period.begins
            group by period.name, period.most, period.ends
        ) as term
        where term.usd + p_usd > term.most
        order by 4 desc limit 1;
        if found then
            ceiling := over.ceiling;
            spent := over.spent;
            reserved := over.reserved;
            seconds := over.seconds;
            return;
        end if;
    end loop;
    update gristmill.spending as s
    set usd = s.usd + p_usd, reserved = case when s.reserved_at > gone then s.reserved else 0 end + p_usd, reserved_at = now_at
    where s.pipeline = p_pipeline and s.scope = any (scopes) and s.day = on_day;
end
$$;

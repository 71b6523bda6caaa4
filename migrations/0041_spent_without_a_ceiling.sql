-- What was paid while a pipeline had no ceiling did not count once it had one again. A worker's configuration says at its start whether
-- there is one: where it is set anew, each day of the month counts as at least what the ledger says.

-- Since when the configuration has a ceiling without a break.
alter table gristmill.pipelines add column ceiling_since timestamptz;
-- Since when what a scope spends is counted here.
alter table gristmill.spending add column counted_since timestamptz;

-- As before, but for when the ledger is asked.
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
    counted timestamptz;
    since timestamptz;
    begins date := date_trunc('month', asked)::date;
    over record;
begin
    on_day := asked::date;
    select ceiling_since into since from gristmill.pipelines where name = p_pipeline;
    -- The whole first, then the tenant: whoever asks at the same time waits here.
    foreach this_scope in array scopes loop
        insert into gristmill.spending as known (pipeline, scope, day)
        select p_pipeline, this_scope, on_day on conflict (pipeline, scope, day) do update set usd = known.usd
        returning known.counted_since into counted;
        if counted is null then
            select max(s.counted_since) into counted from gristmill.spending as s
            where s.pipeline = p_pipeline and s.scope = this_scope and s.day >= begins;
        end if;
        if counted is null or counted < since then
            insert into gristmill.spending as known (pipeline, scope, day, usd)
            select p_pipeline, this_scope, before.day, before.usd from gristmill.spent_before(p_pipeline, this_scope, begins) as before
            on conflict (pipeline, scope, day) do update set usd = greatest(known.usd, excluded.usd + known.reserved);
            counted := now_at;
        end if;
        update gristmill.spending as s set counted_since = counted
        where s.pipeline = p_pipeline and s.scope = this_scope and s.day = on_day and s.counted_since is distinct from counted;
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

-- What calls under way may cost counted as spent, so a job that only they left no room for waited for the next day or month, and stayed
-- away where they turned out cheaper or were not paid. Now it is known of what is counted how much is only reserved: such a job is asked
-- again soon. What counts under a ceiling stays the sum of both.

alter table gristmill.spending
    -- The part of usd that belongs to calls under way,
    add column reserved numeric not null default 0 check (reserved >= 0),
    -- and when the newest of them asked. By default none takes longer than ten minutes: after a quarter of an hour the part counts as
    -- spent, since its worker is gone and it may have been paid.
    add column reserved_at timestamptz not null default '-infinity';

-- As before, and says how much is reserved beside what is spent. Where only that leaves no room, it stands for a short time: for as long
-- again as nothing was reserved, from two seconds to a minute.
drop function gristmill.spend(text, text, numeric, numeric, numeric, numeric, numeric);
create function gristmill.spend(
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
    over record;
begin
    on_day := asked::date;
    -- The whole first, then the tenant: whoever asks at the same time waits here.
    foreach this_scope in array scopes loop
        insert into gristmill.spending as known (pipeline, scope, day) values (p_pipeline, this_scope, on_day)
        on conflict (pipeline, scope, day) do update set usd = known.usd;
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
                 date_trunc('month', asked)::date, date_trunc('month', asked) + interval '1 month')
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
revoke all on function gristmill.spend(text, text, numeric, numeric, numeric, numeric, numeric) from public;

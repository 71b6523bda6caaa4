-- A provider may limit requests and say neither how many nor for how long: two workers had 59 of 100 requests refused. All workers
-- together now find the pace that it takes: lowered where it refuses, raised a little with each request that has to wait for it.

alter table gristmill.budgets
    -- Time from one request to the next, found out; none where nothing was refused.
    add column pace interval,
    -- From when on it holds, and the one before it, at which something was refused; none while it is a guess.
    add column paced_from timestamptz,
    add column refused_pace interval;

-- As before, at the learnt pace where that is slower. What is learnt has no burst: nobody said that there is one.
create or replace function gristmill.take_budget(
    p_provider text, p_credential text, p_requests interval, p_tokens interval, p_burst interval, p_patience interval
) returns interval language plpgsql set search_path = '' as $$
declare
    asked timestamptz;
    free timestamptz;
    learnt interval;
    refused interval;
    burst interval := p_burst;
begin
    -- A crash of the database would forget a few requests: not worth waiting for the disk at each.
    perform set_config('synchronous_commit', 'off', true);
    insert into gristmill.budgets (provider, credential) values (p_provider, p_credential) on conflict do nothing;
    select greatest(requests_until, tokens_until, shut_until), pace, refused_pace into free, learnt, refused
    from gristmill.budgets where provider = p_provider and credential = p_credential for update;
    if learnt is not null then
        burst := interval '0';
    end if;
    asked := clock_timestamp();
    free := greatest(free, asked - burst);
    if free <= asked + p_patience then
        update gristmill.budgets
        set requests_until = greatest(requests_until, greatest(free, asked) - burst) + greatest(p_requests, learnt),
            tokens_until = greatest(tokens_until, greatest(free, asked) - burst) + p_tokens,
            -- Who has to wait raises the pace. Around the one that was too much by so little that of 46 requests, which it takes from
            -- three quarters of it, one or two are refused; far below it, beyond it, where the limit must be another by now, and from
            -- a guess, by more. Beyond a thousand requests a second there is nothing to keep to.
            pace = case when free <= asked then learnt
                        when learnt < interval '1 millisecond' then null
                        when refused is null or learnt > refused * 1.4 then learnt * 0.9
                        when learnt > refused * 0.9 then learnt * (1 - greatest(1.0 / 160, extract(epoch from learnt) / 400))
                        else learnt * (1 - 1.0 / 30) end
        where provider = p_provider and credential = p_credential;
    end if;
    return free - asked;
end
$$;

-- A request that was sent p_age ago was refused, and nobody said for how long: the pace, at first p_guess, is lowered to three
-- quarters, or to half where it was lowered just before. What was under way then tells of the same. All workers pause, and for how
-- long is returned.
create function gristmill.lower_pace(p_provider text, p_credential text, p_age interval, p_guess interval)
returns interval language plpgsql set search_path = '' as $$
declare
    budget gristmill.budgets;
    now timestamptz;
    sent timestamptz;
    refused interval;
    slower interval;
begin
    perform set_config('synchronous_commit', 'off', true);
    insert into gristmill.budgets (provider, credential) values (p_provider, p_credential) on conflict do nothing;
    select * into budget from gristmill.budgets
    where provider = p_provider and credential = p_credential for update;
    now := clock_timestamp();
    sent := now - p_age;
    if budget.pace is not null and sent <= budget.paced_from then
        return greatest(budget.shut_until - now, budget.pace);
    end if;
    refused := coalesce(budget.pace, p_guess);
    slower := least(interval '15 seconds',
        case when sent < budget.paced_from + 16 * refused and budget.pace is not null then 2 * refused else refused * 4 / 3 end);
    update gristmill.budgets
    set pace = slower, refused_pace = budget.pace, shut_until = greatest(shut_until, now + 2 * slower),
        paced_from = greatest(shut_until, now + 2 * slower)
    where provider = p_provider and credential = p_credential;
    return greatest(budget.shut_until - now, 2 * slower);
end
$$;
revoke all on function gristmill.lower_pace(text, text, interval, interval) from public;

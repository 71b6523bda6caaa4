-- A budget that was never shut is so since `-infinity`, of which nothing can be subtracted before Postgres 17: there, no pace was learnt
-- from a provider's refusals. All else is as it was.
create or replace function gristmill.lower_pace(p_provider text, p_credential text, p_age interval, p_guess interval)
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
        return greatest(budget.shut_until, now + budget.pace) - now;
    end if;
    refused := coalesce(budget.pace, p_guess);
    slower := least(interval '2 seconds',
        case when sent < budget.paced_from + 16 * refused and budget.pace is not null then 2 * refused else refused * 4 / 3 end);
    update gristmill.budgets
    set pace = slower, refused_pace = budget.pace, shut_until = greatest(shut_until, now + 2 * slower),
        paced_from = greatest(shut_until, now + 2 * slower)
    where provider = p_provider and credential = p_credential;
    return greatest(budget.shut_until, now + 2 * slower) - now;
end
$$;

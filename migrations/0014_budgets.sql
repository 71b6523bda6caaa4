-- What a provider allows is allowed to all workers together, and what it told one of them to wait for, all have to wait for. Moments
-- rather than counts: what was taken is paid off at the allowed rate, and a bucket that nobody asks needs no refilling.

create table gristmill.budgets (
    provider text not null,
    -- A fingerprint of the secret, never the secret.
    credential text not null,
    requests_until timestamptz not null default '-infinity',
    tokens_until timestamptz not null default '-infinity',
    shut_until timestamptz not null default '-infinity',
    primary key (provider, credential)
);
revoke all on gristmill.budgets from public;

-- Takes the next free moment for a request that costs this much time, and says how far away it is: the caller waits for it and may
-- then send. Who would have to wait for longer than p_patience gets none, and its answer too. A moment that went by unused may be
-- made up for up to p_burst later (the answer is below zero then). What costs more than any bucket holds is let through all the same,
-- and whoever comes next waits for it.
create function gristmill.take_budget(
    p_provider text, p_credential text, p_requests interval, p_tokens interval, p_burst interval, p_patience interval
) returns interval language plpgsql set search_path = '' as $$
declare
    asked timestamptz;
    free timestamptz;
begin
    -- A crash of the database would forget a few requests: not worth waiting for the disk at each.
    perform set_config('synchronous_commit', 'off', true);
    insert into gristmill.budgets (provider, credential) values (p_provider, p_credential) on conflict do nothing;
    select greatest(requests_until, tokens_until, shut_until) into free
    from gristmill.budgets where provider = p_provider and credential = p_credential for update;
    asked := clock_timestamp();
    free := greatest(free, asked - p_burst);
    if free <= asked + p_patience then
        update gristmill.budgets
        set requests_until = greatest(requests_until, greatest(free, asked) - p_burst) + p_requests,
            tokens_until = greatest(tokens_until, greatest(free, asked) - p_burst) + p_tokens
        where provider = p_provider and credential = p_credential;
    end if;
    return free - asked;
end
$$;
revoke all on function gristmill.take_budget(text, text, interval, interval, interval, interval) from public;

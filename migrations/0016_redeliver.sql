-- A pipeline's name that is misspelt was answered with 0, as if nothing had been given up.

create or replace function gristmill.redeliver(pipeline text)
returns bigint language plpgsql security definer set search_path = '' as $$
declare
    tried bigint;
begin
    if not exists (select from gristmill.pipelines p where p.name = $1)
        and not exists (select from gristmill.outbox o where o.pipeline = $1) then
        raise exception 'gristmill knows no pipeline "%"', $1
            using errcode = 'no_data_found', hint = 'a pipeline is known once a worker has started with it';
    end if;
    update gristmill.outbox o set failed_at = null, attempts = 0, due_at = clock_timestamp(), since = clock_timestamp()
    where o.pipeline = $1 and o.failed_at is not null;
    get diagnostics tried = row_count;
    return tried;
end
$$;

#!/usr/bin/env escript
%% Runs sequences of events against OTP's own supervisor and writes what it did, one JSON object a line.
%%
%%   escript record.escript SEQUENCES PARALLEL
%%
%% SEQUENCES is a file of Erlang terms, one {Number, Tree, Steps} each (written by sequences.py):
%%   Tree  = {Strategy, Intensity, PeriodSeconds, AutoShutdown, [Child]}
%%   Child = {Id, Restart, Significant, worker | Tree}
%%   Steps = {exit, Path, Reason} | {exits, Path, [{Id, Reason}]} | {wait, Seconds} | {fail, Path, Times}
%%         | {remove, Path} | {delete, Path} | {restart, Path} | {add, Path, Child}
%%
%% Each sequence has a process of its own, its runner. Supervisors and workers write what they do into the sequence's
%% ets table in the moment they do it, numbered by one atomic counter: an order of sends to a common mailbox would not
%% be the order of the acts. The runner makes one step at a time and goes on when the tree is quiet: every supervisor
%% has answered, nobody is restarting, and nothing was written for several rounds.
-module(record).
-mode(compile).
-export([main/1, init/1, start_child/4, start_worker/3, log/2]).

-define(ROUNDS, 3).
-define(ROUND_MS, 12).

main([File, Parallel]) ->
    {ok, Sequences} = file:consult(File),
    logger:remove_handler(default),
    ok = logger:add_handler(reports, ?MODULE, #{}),
    ok = logger:set_primary_config(level, error),
    io:setopts([{encoding, utf8}]),
    Stdlib = element(2, lists:keyfind(stdlib, 1, [{App, Vsn} || {App, _, Vsn} <- loaded()])),
    io:format("{\"otp\":\"~s\",\"stdlib\":\"~s\",\"erts\":\"~s\"}~n",
              [erlang:system_info(otp_release), Stdlib, erlang:system_info(version)]),
    pool(Sequences, list_to_integer(Parallel), 0);
main(_) ->
    io:format(standard_error, "usage: escript record.escript SEQUENCES PARALLEL~n", []),
    halt(2).

loaded() -> application:loaded_applications().

pool([], _, 0) -> ok;
pool([Sequence | Rest], Parallel, Busy) when Busy < Parallel ->
    Self = self(),
    spawn_link(fun() -> Self ! {done, sequence(Sequence)} end),
    pool(Rest, Parallel, Busy + 1);
pool(Rest, Parallel, Busy) ->
    receive {done, Line} -> io:put_chars([Line, $\n]) end,
    pool(Rest, Parallel, Busy - 1).

%% ---------------------------------------------------------------- one sequence

sequence({Number, Tree, Steps}) ->
    process_flag(trap_exit, true),
    Ctx = {ets:new(acts, [ordered_set, public]), atomics:new(1, []), ets:new(fails, [set, public])},
    Top = case start_supervisor(Ctx, [], Tree) of
        {ok, Pid} -> Pid;
        {error, _} -> undefined
    end,
    Zero = erlang:monotonic_time(millisecond),
    First = quiet(Ctx, Top),
    {Seen, Drift} = steps(Steps, Ctx, Top, Zero, 0, 0, [seen(<<"">>, First, Ctx)]),
    stop(Top),
    [io_lib:format("{\"n\":~b,\"drift_ms\":~b,\"seen\":[", [Number, Drift]), lists:join($,, Seen), "]}"].

steps([], _Ctx, _Top, _Zero, _Nominal, Drift, Seen) ->
    {lists:reverse(Seen), Drift};
steps([Step | Steps], Ctx, Top, Zero, Nominal, Drift, Seen) ->
    case is_pid(Top) andalso is_process_alive(Top) of
        false ->
            {lists:reverse(Seen), Drift};
        true ->
            Now = Nominal + case Step of {wait, Seconds} -> Seconds * 1000; _ -> 0 end,
            Result = case Step of
                {wait, _} -> timer:sleep(max(0, Zero + Now - erlang:monotonic_time(millisecond))), <<"">>;
                _ -> step(Step, Ctx, Top)
            end,
            State = quiet(Ctx, Top),
            Late = erlang:monotonic_time(millisecond) - Zero - Now,
            steps(Steps, Ctx, Top, Zero, Now, max(Drift, Late), [seen(Result, State, Ctx) | Seen])
    end.

step({fail, Path, Times}, {_, _, Fails}, _Top) ->
    ets:insert(Fails, {Path, Times}),
    <<"">>;
step({exit, Path, Reason}, _Ctx, Top) ->
    finish(find(Top, Path), Reason);
%% A suspended supervisor reads no exits: they wait in its mailbox, in the order in which we make them.
step({exits, Path, Endings}, _Ctx, Top) ->
    case find(Top, Path) of
        Supervisor when is_pid(Supervisor) ->
            Pids = [{find(Supervisor, [Id]), Reason} || {Id, Reason} <- Endings],
            ok = sys:suspend(Supervisor),
            Results = [finish(Pid, Reason) || {Pid, Reason} <- Pids],
            ok = sys:resume(Supervisor),
            lists:join($ , Results);
        _ ->
            <<"skip">>
    end;
step({remove, Path}, _Ctx, Top) ->
    {Parent, Id} = parent(Top, Path),
    with(Parent, fun() ->
        case supervisor:terminate_child(Parent, Id) of
            ok -> supervisor:delete_child(Parent, Id), ok;
            Error -> Error
        end
    end);
step({delete, Path}, _Ctx, Top) ->
    {Parent, Id} = parent(Top, Path),
    with(Parent, fun() -> supervisor:delete_child(Parent, Id) end);
step({restart, Path}, _Ctx, Top) ->
    {Parent, Id} = parent(Top, Path),
    with(Parent, fun() -> supervisor:restart_child(Parent, Id) end);
step({add, Path, Child}, Ctx, Top) ->
    {Parent, _Id} = parent(Top, Path),
    with(Parent, fun() -> supervisor:start_child(Parent, spec(Ctx, lists:droplast(Path), Child)) end).

finish(Pid, Reason) when is_pid(Pid) ->
    Monitor = monitor(process, Pid),
    case Reason of
        kill -> exit(Pid, kill);
        _ -> Pid ! {die, Reason}
    end,
    receive {'DOWN', Monitor, process, Pid, _} -> <<"ok">> end;
finish(_, _) ->
    <<"skip">>.

with(Parent, Call) when is_pid(Parent) ->
    case Call() of
        ok -> <<"ok">>;
        {ok, _} -> <<"ok">>;
        {error, Reason} when is_atom(Reason) -> atom_to_binary(Reason);
        {error, {already_started, _}} -> <<"already_started">>
    end;
with(_, _) ->
    <<"skip">>.

parent(Top, Path) -> {find(Top, lists:droplast(Path)), lists:last(Path)}.

find(Pid, []) -> Pid;
find(Pid, [Id | Path]) when is_pid(Pid) ->
    case lists:keyfind(Id, 1, supervisor:which_children(Pid)) of
        {Id, Child, _, _} -> find(Child, Path);
        false -> undefined
    end;
find(_, _) -> undefined.

stop(Top) when is_pid(Top) ->
    Monitor = monitor(process, Top),
    exit(Top, shutdown),
    receive {'DOWN', Monitor, process, Top, _} -> ok end;
stop(_) -> ok.

%% ---------------------------------------------------------------- waiting until nothing happens any more

quiet(Ctx, Top) -> quiet(Ctx, Top, none, 0).

quiet(_Ctx, _Top, {State, _}, ?ROUNDS) -> State;
quiet({_, Counter, _} = Ctx, Top, Last, Same) ->
    timer:sleep(?ROUND_MS),
    case {walk(Top), atomics:get(Counter, 1)} of
        {busy, _} -> quiet(Ctx, Top, none, 0);
        Last -> quiet(Ctx, Top, Last, Same + 1);
        Other -> quiet(Ctx, Top, Other, 1)
    end.

%% The tree as text: a+ lives, a- is down, a(…) is a supervisor that lives; in start order.
walk(Top) ->
    case is_pid(Top) andalso is_process_alive(Top) of
        false -> <<"ended">>;
        true ->
            try iolist_to_binary(walk_children(Top))
            catch _:_ -> busy
            end
    end.

walk_children(Supervisor) ->
    [walk_child(Child) || Child <- lists:reverse(supervisor:which_children(Supervisor))].

walk_child({_, restarting, _, _}) -> throw(busy);
walk_child({Id, undefined, _, _}) -> [atom_to_list(Id), "-"];
walk_child({Id, Pid, supervisor, _}) -> [atom_to_list(Id), "(", walk_children(Pid), ")"];
walk_child({Id, Pid, worker, _}) ->
    true = is_process_alive(Pid),
    [atom_to_list(Id), "+"].

%% What was written since the last step: [result, acts in order, who gave up, who ended, state of the tree].
seen(Result, State, {Acts, _, _}) ->
    Written = [Act || {_, Act} <- ets:tab2list(Acts)],
    ets:delete_all_objects(Acts),
    Text = fun(Kinds) -> [[Kind, path(Path)] || {Kind, Path} <- Written, lists:member(Kind, Kinds)] end,
    Ended = lists:sort([lists:flatten([path(Path), "=", Reason]) || {ended, Path, Reason} <- Written]),
    GaveUp = [path(Path) || {gave_up, Path} <- Written],
    json([Result, Text(["+", "-", "!"]), GaveUp, Ended, State]).

json([Result, Did, GaveUp, Ended, State]) ->
    [$[, string(Result), $,, strings(Did), $,, strings(GaveUp), $,, strings(Ended), $,, string(State), $]].

strings(Texts) -> [$[, lists:join($,, [string(Text) || Text <- Texts]), $]].

string(Text) -> [$", Text, $"].

path(Path) -> lists:join($., [atom_to_list(Id) || Id <- Path]).

write({Acts, Counter, _}, Act) ->
    ets:insert(Acts, {atomics:add_get(Counter, 1, 1), Act}).

%% ---------------------------------------------------------------- supervisors and workers

spec(Ctx, Above, {Id, Restart, Significant, What}) ->
    #{id => Id, restart => Restart, significant => Significant, shutdown => infinity,
      type => case What of worker -> worker; _ -> supervisor end,
      start => {?MODULE, start_child, [Ctx, Above, Id, What]}}.

start_child({_, _, Fails} = Ctx, Above, Id, worker) ->
    Path = Above ++ [Id],
    case ets:lookup(Fails, Path) of
        [{_, Times}] when Times > 0 ->
            ets:insert(Fails, {Path, Times - 1}),
            write(Ctx, {"!", Path}),
            {error, planned};
        _ ->
            write(Ctx, {"+", Path}),
            proc_lib:start_link(?MODULE, start_worker, [Ctx, Path, self()])
    end;
start_child(Ctx, Above, Id, Tree) ->
    write(Ctx, {"+", Above ++ [Id]}),
    case start_supervisor(Ctx, Above ++ [Id], Tree) of
        {ok, Pid} -> {ok, Pid};
        Error -> write(Ctx, {"!", Above ++ [Id]}), Error
    end.

start_worker(Ctx, Path, Parent) ->
    process_flag(trap_exit, true),
    proc_lib:init_ack({ok, self()}),
    worker(Ctx, Path, Parent).

worker(Ctx, Path, Parent) ->
    receive
        {die, x} -> exit({shutdown, x});
        {die, Reason} -> exit(Reason);
        {'EXIT', Parent, Reason} -> write(Ctx, {"-", Path}), exit(Reason)
    end.

start_supervisor(Ctx, Path, Tree) -> supervisor:start_link(?MODULE, {Ctx, Path, Tree}).

init({Ctx, Path, {Strategy, Intensity, Period, AutoShutdown, Children}}) ->
    put(sequence, {Ctx, Path}),
    Self = self(),
    spawn(fun() -> Monitor = monitor(process, Self), Self ! watched, watch(Ctx, Path, Monitor) end),
    receive watched -> ok end,
    Flags = #{strategy => Strategy, intensity => Intensity, period => Period, auto_shutdown => AutoShutdown},
    {ok, {Flags, [spec(Ctx, Path, Child) || Child <- Children]}}.

watch(Ctx, Path, Monitor) ->
    receive {'DOWN', Monitor, process, _, Reason} -> write(Ctx, {ended, Path, reason(Reason)}) end.

reason(shutdown) -> "shutdown";
reason({shutdown, _}) -> "start_failed";
reason(_) -> "other".

%% A logger handler: it runs in the process that logs, here a supervisor that reports.
log(#{msg := {report, #{label := {supervisor, shutdown}, report := Report}}}, _Config) ->
    case {get(sequence), proplists:get_value(reason, Report)} of
        {{Ctx, Path}, reached_max_restart_intensity} -> write(Ctx, {gave_up, Path});
        _ -> ok
    end;
log(_, _) ->
    ok.

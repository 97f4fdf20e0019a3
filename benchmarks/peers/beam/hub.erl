%% The BEAM hub: every session is an Erlang process in one virtual machine, started and restarted by its supervisor.
%%
%%     erl -noshell -pa DIR -run hub main SOCKET
%%
%% Four kinds of process: `hub` owns the ring, a subscriber pulls from it at its own pace, `sup` (an OTP
%% simple_one_for_one supervisor) owns the sessions, `control` obeys the driver. A session hands its records over in
%% batches and, when it emits without pause, waits for the hub every CREDIT batches, which bounds the hub's mailbox.
-module(hub).
-behaviour(supervisor).
-export([main/1, init/1, start_session/1, session/2]).

-define(RECORD, 144).
-define(RING_BYTES, 64 * 1024 * 1024).
-define(READ_BYTES, 256 * 1024).
-define(HELLO, 16#fffffffe).
-define(GAP, 16#ffffffff).
-define(BATCH, 64).
-define(CREDIT, 16).

main([Path]) ->
    Ring = spawn_link(fun() -> ring_start() end),
    register(ring, Ring),
    {ok, _} = supervisor:start_link({local, sup}, ?MODULE, []),
    {ok, Listen} = gen_tcp:listen(0, [{ifaddr, {local, Path}}, binary, {packet, line}, {active, false},
                                      {sndbuf, ?READ_BYTES}]),
    accept(Listen).

init([]) ->
    %% The driver kills sessions on purpose; the allowance of restarts is not what is measured.
    {ok, {#{strategy => simple_one_for_one, intensity => 1000000, period => 1},
          [#{id => session, start => {?MODULE, start_session, []}, restart => permanent, shutdown => brutal_kill}]}}.

accept(Listen) ->
    {ok, Socket} = gen_tcp:accept(Listen),
    Pid = spawn(fun() -> receive go -> greet(Socket) end end),
    ok = gen_tcp:controlling_process(Socket, Pid),
    Pid ! go,
    accept(Listen).

greet(Socket) ->
    {ok, Line} = gen_tcp:recv(Socket, 0),
    case string:lexemes(binary_to_list(Line), " \n") of
        ["control"] ->
            register(control, self()),
            ok = inet:setopts(Socket, [{active, true}]),
            control(Socket, #{});
        ["subscribe", From] ->
            ok = inet:setopts(Socket, [{packet, raw}]),
            subscribe(Socket, list_to_integer(From))
    end.

%% --- the ring: chunks of whole records, oldest first, each with the offset of its first record ---

ring_start() ->
    process_flag(priority, high),
    process_flag(message_queue_data, off_heap),
    ring({queue:new(), 0, 0}, []).

%% The ring is {Chunks, Bytes, Head}; Waiting are subscribers that have everything.
ring(Ring, Waiting) ->
    receive
        {append, Records} ->
            ring_append(Ring, Waiting, [Records], byte_size(Records));
        {publish, From, Records} ->
            From ! credit,
            ring_append(Ring, Waiting, [Records], byte_size(Records));
        {open, From, Wanted} ->
            {_, _, Head} = Ring,
            From ! {opened, if Wanted < 0 -> Head; true -> min(Wanted, Head) end},
            ring(Ring, Waiting);
        {pull, From, Cursor} ->
            {_, _, Head} = Ring,
            case Cursor of
                Head -> ring(Ring, [From | Waiting]);
                _ -> From ! ring_read(Ring, Cursor), ring(Ring, Waiting)
            end
    end.

%% What has arrived meanwhile joins the same chunk: many small messages cost one write to the subscriber.
ring_append(Ring, Waiting, Batches, Size) when Size < ?READ_BYTES ->
    receive
        {append, Records} ->
            ring_append(Ring, Waiting, [Records | Batches], Size + byte_size(Records));
        {publish, From, Records} ->
            From ! credit,
            ring_append(Ring, Waiting, [Records | Batches], Size + byte_size(Records))
    after 0 ->
        ring_store(Ring, Waiting, Batches, Size)
    end;
ring_append(Ring, Waiting, Batches, Size) ->
    ring_store(Ring, Waiting, Batches, Size).

ring_store({Chunks, Bytes, Head}, Waiting, Batches, Size) ->
    Chunk = iolist_to_binary(lists:reverse(Batches)),
    New = trim({queue:in({Head, Chunk}, Chunks), Bytes + Size, Head + Size div ?RECORD}),
    lists:foreach(fun(From) -> From ! {records, Head, Chunk} end, Waiting),
    ring(New, []).

trim({Chunks, Bytes, Head}) when Bytes > ?RING_BYTES ->
    {{value, {_, Old}}, Rest} = queue:out(Chunks),
    trim({Rest, Bytes - byte_size(Old), Head});
trim(Ring) ->
    Ring.

%% A subscriber that follows finds its chunk at the rear after a few steps; one that replays finds it at the front.
ring_read({Chunks, _, _}, Cursor) ->
    {value, {Tail, Oldest}} = queue:peek(Chunks),
    if
        Cursor < Tail -> {gap, Cursor, Tail};
        Cursor < Tail + byte_size(Oldest) div ?RECORD -> part(Cursor, {Tail, Oldest});
        true -> part(Cursor, from_rear(Chunks, Cursor))
    end.

from_rear(Chunks, Cursor) ->
    case queue:out_r(Chunks) of
        {{value, {First, _} = Found}, _} when First =< Cursor -> Found;
        {_, Rest} -> from_rear(Rest, Cursor)
    end.

part(Cursor, {First, Chunk}) ->
    Skip = (Cursor - First) * ?RECORD,
    {records, Cursor, binary:part(Chunk, Skip, byte_size(Chunk) - Skip)}.

%% --- a subscriber: a cursor and one outstanding pull ---

subscribe(Socket, From) ->
    process_flag(priority, high),
    ring ! {open, self(), From},
    Cursor = receive {opened, At} -> At end,
    ok = gen_tcp:send(Socket, record(?HELLO, 0, Cursor, 0)),
    follow(Socket, Cursor).

follow(Socket, Cursor) ->
    ring ! {pull, self(), Cursor},
    {Sent, Next} =
        receive
            {records, First, Records} ->
                {gen_tcp:send(Socket, Records), First + byte_size(Records) div ?RECORD};
            {gap, First, Tail} ->
                {gen_tcp:send(Socket, record(?GAP, 0, First, Tail - First)), Tail}
        end,
    case Sent of
        ok -> follow(Socket, Next);
        {error, _} -> ok
    end.

%% --- control ---

control(Socket, Sessions) ->
    receive
        {tcp, Socket, Line} ->
            control(Socket, obey(string:lexemes(binary_to_list(Line), " \n"), Sessions));
        {tcp_closed, Socket} ->
            halt(0);
        {started, Id, Pid} ->
            Word = case Sessions of #{Id := _} -> "replaced"; #{} -> "ready" end,
            ok = gen_tcp:send(Socket, io_lib:format("~s ~b ~s~n", [Word, Id, os:getpid()])),
            control(Socket, Sessions#{Id => Pid})
    end.

obey(["spawn", First, Count], Sessions) ->
    From = list_to_integer(First),
    [{ok, _} = supervisor:start_child(sup, [Id]) || Id <- lists:seq(From, From + list_to_integer(Count) - 1)],
    Sessions;
obey(["emit" | Numbers], Sessions) ->
    [First, Count, Start, Rate, Events] = [list_to_integer(N) || N <- Numbers],
    [maps:get(Id, Sessions) ! {emit, Start, Rate, Events} || Id <- lists:seq(First, First + Count - 1)],
    Sessions;
obey(["fault", Id, Kind, Amount], Sessions) ->
    maps:get(list_to_integer(Id), Sessions) ! {fault, Kind, list_to_integer(Amount)},
    Sessions;
obey(["quit"], _) ->
    halt(0).

%% --- a session ---

start_session(Id) ->
    {ok, spawn_link(?MODULE, session, [Id, 0])}.

session(Id, Seq) ->
    control ! {started, Id, self()},
    idle(Id, Seq, []).

idle(Id, Seq, Kept) ->
    receive
        {emit, Start, Rate, Events} ->
            Interval = case Rate of 0 -> 0; _ -> 1000000000 div Rate end,
            Phase = trunc((Id * 0.6180339887498949 - trunc(Id * 0.6180339887498949)) * Interval),
            emit({Id, Start + Phase, Interval, Events}, 0, Seq, Kept, ?CREDIT);
        {fault, Kind, Amount} ->
            idle(Id, Seq, fault(Kind, Amount, Kept))
    end.

fault("spin", Ms, Kept) ->
    spin(now_ns() + Ms * 1000000),
    Kept;
fault("leak", Bytes, Kept) ->
    [binary:copy(<<16#a5>>, Bytes) | Kept];
fault("die", _, _) ->
    exit(kill).

spin(End) ->
    case now_ns() < End of
        true -> spin(End);
        false -> ok
    end.

emit({Id, _, _, Events}, Events, Seq, Kept, _) ->
    idle(Id, Seq, Kept);
emit({_, _, 0, Events} = Plan, Index, Seq, Kept, 0) ->
    %% Emitting without pause: one batch may go for every batch that the hub has taken.
    receive credit -> emit_batch(Plan, Index, Seq, Kept, min(?BATCH, Events - Index), 0) end;
emit({_, _, 0, Events} = Plan, Index, Seq, Kept, Credit) ->
    emit_batch(Plan, Index, Seq, Kept, min(?BATCH, Events - Index), Credit - 1);
emit({_, Start, Interval, Events} = Plan, Index, Seq, Kept, Credit) ->
    Now = now_ns(),
    case min(Events, (Now - Start) div Interval + 1) - Index of
        Due when Now >= Start, Due > 0 ->
            emit_batch(Plan, Index, Seq, Kept, min(?BATCH, Due), Credit);
        _ ->
            %% A timer at an absolute time fires in the first millisecond that is not too early.
            At = ceil_ms(Start + Index * Interval + erlang:monotonic_time(nanosecond) - now_ns()),
            Timer = erlang:send_after(At, self(), due, [{abs, true}]),
            receive
                due ->
                    emit(Plan, Index, Seq, Kept, Credit);
                {fault, Kind, Amount} ->
                    erlang:cancel_timer(Timer),
                    emit(Plan, Index, Seq, fault(Kind, Amount, Kept), Credit)
            end
    end.

emit_batch({Id, Start, Interval, _} = Plan, Index, Seq, Kept, Count, Credit) ->
    Now = now_ns(),
    Due = fun(I) -> case Interval of 0 -> Now; _ -> Start + (Index + I) * Interval end end,
    Records = << <<(record(Id, Seq + I, Due(I), Now))/binary>> || I <- lists:seq(0, Count - 1) >>,
    ring ! case Interval of 0 -> {publish, self(), Records}; _ -> {append, Records} end,
    emit(Plan, Index + Count, Seq + Count, Kept, Credit).

record(Session, Seq, Scheduled, Emitted) ->
    <<Session:32/little, Seq:32/little, Scheduled:64/little, Emitted:64/little,
      "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
      "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx">>.

%% Rounded up; `div` rounds towards zero, and Erlang's own clock begins far below it.
ceil_ms(Ns) when Ns < 0 -> -(-Ns div 1000000);
ceil_ms(Ns) -> (Ns + 999999) div 1000000.

%% CLOCK_MONOTONIC as every other process reads it; erlang:monotonic_time counts from another zero.
now_ns() ->
    os:perf_counter(nanosecond).

// The Node hub. `node hub.mjs SOCKET here` runs the sessions beside itself, on one loop and one heap;
// `… fork` gives each a process; `… fork-low` also lowers their priority below the hub's.

import { fork } from 'node:child_process';
import { createServer } from 'node:net';
import { constants, setPriority } from 'node:os';
import { fileURLToPath } from 'node:url';
import { GAP, HELLO, RECORD_BYTES, Ring, record } from './ring.mjs';
import { Session } from './session.mjs';

const CHILD = fileURLToPath(new URL('./child.mjs', import.meta.url));
const [path, mode] = process.argv.slice(2);
const ring = new Ring();
const sessions = new Map();
const subscribers = new Set();
let control;
let isScheduled = false;

// Subscribers are served once per turn of the loop, with everything that the turn brought.
function publish(records) {
  ring.append(records);
  if (isScheduled) return;
  isScheduled = true;
  setImmediate(() => {
    isScheduled = false;
    for (const subscriber of subscribers) subscriber.pump();
  });
}

class Subscriber {
  constructor(socket, from) {
    this.socket = socket;
    this.cursor = from < 0 ? ring.head : Math.min(from, ring.head);
    socket.on('drain', () => this.pump());
    socket.write(record(HELLO, 0, this.cursor, 0));
    this.pump();
  }

  pump() {
    while (this.cursor < ring.head && !this.socket.writableNeedDrain) {
      if (this.cursor < ring.tail) {
        this.socket.write(record(GAP, 0, this.cursor, ring.tail - this.cursor));
        this.cursor = ring.tail;
      }
      const records = ring.read(this.cursor);
      this.cursor += records.length / RECORD_BYTES;
      this.socket.write(records);
    }
  }
}

// A session beside the hub. Its errors end at its own boundary, as far as JavaScript lets them.
function startHere(id, word) {
  const session = new Session(id, {
    write: (records) => (publish(records), records.length < 64 * RECORD_BYTES),
    whenFree: (resume) => setImmediate(resume),
  });
  const guarded = (action) => {
    try {
      action();
    } catch {
      session.stop();
      startHere(id, 'replaced');
    }
  };
  sessions.set(id, {
    emit: (startNs, rate, events) => guarded(() => session.emit(startNs, rate, events)),
    fault: (kind, amount) => guarded(() => session.fault(kind, amount)),
    end: () => session.stop(),
  });
  control.write(`${word} ${id} ${process.pid}\n`);
}

function startChild(id, word) {
  const child = fork(CHILD, [String(id)], {
    serialization: 'advanced',
    stdio: ['ignore', 'inherit', 'inherit', 'ipc', 'pipe'],
  });
  if (mode === 'fork-low') setPriority(child.pid, constants.priority.PRIORITY_LOW);
  let rest = Buffer.alloc(0);
  child.stdio[4].on('data', (chunk) => {
    const bytes = rest.length ? Buffer.concat([rest, chunk]) : chunk;
    const whole = bytes.length - (bytes.length % RECORD_BYTES);
    if (whole) publish(bytes.subarray(0, whole));
    rest = bytes.subarray(whole);
  });
  child.stdio[4].on('error', () => {});
  child.on('error', () => {});
  child.once('message', () => control.write(`${word} ${id} ${child.pid}\n`));
  child.once('exit', () => {
    if (sessions.get(id) === handle) startChild(id, 'replaced');
  });
  const handle = {
    emit: (startNs, rate, events) => child.send({ kind: 'emit', startNs, rate, events }),
    fault: (kind, amount) => child.send({ kind, amount }),
    end: () => child.kill('SIGKILL'),
  };
  sessions.set(id, handle);
}

const start = mode === 'here' ? startHere : startChild;

function quit() {
  const ending = [...sessions.values()];
  sessions.clear();
  for (const session of ending) session.end();
  process.exit(0);
}

function obey(words) {
  const [order, ...rest] = words;
  const numbers = rest.map(Number);
  if (order === 'spawn') {
    for (let i = 0; i < numbers[1]; i++) start(numbers[0] + i, 'ready');
  } else if (order === 'emit') {
    const [first, count, startNs, rate, events] = numbers;
    for (let i = 0; i < count; i++) sessions.get(first + i).emit(startNs, rate, events);
  } else if (order === 'fault') {
    sessions.get(numbers[0]).fault(rest[1], numbers[2]);
  } else if (order === 'quit') {
    quit();
  }
}

createServer((socket) => {
  let text = '';
  const listen = (chunk) => {
    text += chunk;
    let end;
    while ((end = text.indexOf('\n')) >= 0) {
      const words = text.slice(0, end).split(' ');
      text = text.slice(end + 1);
      if (words[0] === 'control') {
        control = socket;
        socket.on('close', quit);
      } else if (words[0] === 'subscribe') {
        const subscriber = new Subscriber(socket, Number(words[1]));
        subscribers.add(subscriber);
        socket.on('close', () => subscribers.delete(subscriber));
      } else {
        obey(words);
      }
    }
  };
  socket.on('data', listen);
  socket.on('error', () => {});
}).listen(path);

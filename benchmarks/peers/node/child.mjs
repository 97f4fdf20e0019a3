// A session in a process of its own: orders come over fork's channel, records leave over a pipe that fork opened.

import { Socket } from 'node:net';
import { Session } from './session.mjs';

const pipe = new Socket({ fd: 4, readable: false, writable: true });
const line = {
  write: (records) => pipe.write(records),
  whenFree: (resume) => pipe.once('drain', resume),
};
const session = new Session(Number(process.argv[2]), line);

process.on('message', (order) => {
  if (order.kind === 'emit') session.emit(order.startNs, order.rate, order.events);
  else session.fault(order.kind, order.amount);
});
// A child whose hub has gone has nothing left to do.
process.on('disconnect', () => process.exit(0));
pipe.on('error', () => process.exit(0));
process.send('ready');

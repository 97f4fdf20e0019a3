// One session: emits on a schedule, or misbehaves. The same code runs beside the hub and in a process of its own.

import { RECORD_BYTES, nowNs, writeHeader } from './ring.mjs';

const BATCH = 64;
const kept = [];

export class Session {
  // `line.write(records)` returns false when it wants no more for now; `line.whenFree(resume)` says when it does.
  constructor(id, line) {
    this.id = id;
    this.line = line;
    this.seq = 0;
    this.timer = undefined;
  }

  emit(startNs, rate, events) {
    const intervalNs = rate ? 1e9 / rate : 0;
    const phaseNs = Math.floor(((this.id * 0.6180339887498949) % 1) * intervalNs);
    this.plan = { startNs: startNs + phaseNs, intervalNs, events, index: 0 };
    this.continue();
  }

  continue() {
    const plan = this.plan;
    while (plan.index < plan.events) {
      const now = nowNs();
      const count = plan.intervalNs
        ? Math.min(plan.events, Math.floor((now - plan.startNs) / plan.intervalNs) + 1) - plan.index
        : plan.events - plan.index;
      if (count <= 0) {
        // Timers count in milliseconds and may fire early; nothing leaves before its time.
        const waitNs = plan.startNs + plan.index * plan.intervalNs - now;
        this.timer = setTimeout(() => this.continue(), Math.max(1, Math.ceil(waitNs / 1e6)));
        return;
      }
      const free = this.line.write(this.records(plan, Math.min(count, BATCH), now));
      if (!free) return void this.line.whenFree(() => this.continue());
    }
  }

  records(plan, count, now) {
    const bytes = Buffer.allocUnsafe(count * RECORD_BYTES).fill('x');
    for (let i = 0; i < count; i++, plan.index++, this.seq++) {
      const due = plan.intervalNs ? plan.startNs + Math.floor(plan.index * plan.intervalNs) : now;
      writeHeader(bytes, i * RECORD_BYTES, this.id, this.seq, due, now);
    }
    return bytes;
  }

  fault(kind, amount) {
    if (kind === 'spin') {
      const end = nowNs() + amount * 1e6;
      while (nowNs() < end);
    } else if (kind === 'leak') {
      kept.push(Buffer.alloc(amount, 0xa5));
    } else {
      throw new Error(`session ${this.id} died, as ordered`);
    }
  }

  stop() {
    clearTimeout(this.timer);
    this.plan = { events: 0, index: 0 };
  }
}

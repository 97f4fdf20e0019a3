// The bounded, replayable ring of the Node hubs: the newest events, in memory, outside V8's heap.

export const RECORD_BYTES = 144;
export const HELLO = 0xfffffffe;
export const GAP = 0xffffffff;
const READ_RECORDS = Math.floor((256 * 1024) / RECORD_BYTES);
const TWO_32 = 2 ** 32;

// Nanoseconds stay exact in a double until a machine has been up for 104 days; a BigInt would cost an allocation.
export function nowNs() {
  const [seconds, nanoseconds] = process.hrtime();
  return seconds * 1e9 + nanoseconds;
}

export function writeHeader(buffer, at, session, seq, scheduledNs, emittedNs) {
  buffer.writeUInt32LE(session, at);
  buffer.writeUInt32LE(seq, at + 4);
  buffer.writeUInt32LE(scheduledNs % TWO_32, at + 8);
  buffer.writeUInt32LE(Math.floor(scheduledNs / TWO_32), at + 12);
  buffer.writeUInt32LE(emittedNs % TWO_32, at + 16);
  buffer.writeUInt32LE(Math.floor(emittedNs / TWO_32), at + 20);
}

export function record(session, seq, scheduledNs, emittedNs) {
  const bytes = Buffer.alloc(RECORD_BYTES, 'x');
  writeHeader(bytes, 0, session, seq, scheduledNs, emittedNs);
  return bytes;
}

export class Ring {
  constructor(sizeBytes = 64 * 1024 * 1024) {
    this.capacity = Math.floor(sizeBytes / RECORD_BYTES);
    this.bytes = Buffer.allocUnsafeSlow(this.capacity * RECORD_BYTES);
    this.head = 0;
  }

  get tail() {
    return Math.max(0, this.head - this.capacity);
  }

  // Takes whole records.
  append(records) {
    const at = (this.head % this.capacity) * RECORD_BYTES;
    const first = records.copy(this.bytes, at);
    if (first < records.length) records.copy(this.bytes, 0, first);
    this.head += records.length / RECORD_BYTES;
  }

  // A copy, because the ring may come round while the kernel still holds the line back.
  read(cursor) {
    const slot = cursor % this.capacity;
    const count = Math.min(this.head - cursor, READ_RECORDS, this.capacity - slot);
    return Buffer.from(this.bytes.subarray(slot * RECORD_BYTES, (slot + count) * RECORD_BYTES));
  }
}

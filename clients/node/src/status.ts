/** gRPC status → the error tree: the one place that reads status codes and rich details. */

import { BinaryReader } from "@bufbuild/protobuf/wire";
import { status, type ServiceError } from "@grpc/grpc-js";

import * as errors from "./errors.js";

const CLASSES = new Map<number, new (message: string, facts: errors.Facts) => errors.AcclimateError>([
  [status.INVALID_ARGUMENT, errors.InvalidRequest],
  [status.OUT_OF_RANGE, errors.InvalidRequest],
  [status.NOT_FOUND, errors.NotFound],
  [status.ALREADY_EXISTS, errors.AlreadyExists],
  [status.FAILED_PRECONDITION, errors.Conflict],
  [status.ABORTED, errors.Conflict],
  [status.PERMISSION_DENIED, errors.NotAllowed],
  [status.UNAUTHENTICATED, errors.NotAllowed],
  [status.RESOURCE_EXHAUSTED, errors.Overloaded],
  [status.UNAVAILABLE, errors.Unavailable],
  [status.CANCELLED, errors.Unavailable],
  [status.DEADLINE_EXCEEDED, errors.DeadlineExceeded],
]);

const TLS_REFUSED = "TLS_REFUSED";

/** The error that a failed call stands for; what is not of gRPC passes through. */
export function errorOf(failure: unknown): unknown {
  if (!isServiceError(failure)) return failure;
  const facts: errors.Facts = { reason: status[failure.code] ?? String(failure.code) };
  for (const encoded of failure.metadata?.get("grpc-status-details-bin") ?? []) {
    if (encoded instanceof Uint8Array) Object.assign(facts, details(encoded));
  }
  // What grpc-js makes of a connection that broke under a call.
  const broken = failure.code === status.INTERNAL && /RST_STREAM|ECONNRESET/.test(failure.details);
  let found = broken ? errors.Unavailable : (CLASSES.get(failure.code) ?? errors.ServiceFault);
  // What Node.js says of a certificate that it does not trust, and of a server without TLS, with
  // the code of an absent service.
  const distrust = /certificate|wrong version number/i;
  if (failure.code === status.UNAVAILABLE && distrust.test(failure.details)) {
    facts.reason = TLS_REFUSED;
  }
  // Of a message over the limit of either side, with the code of a full queue.
  const large = /message larger than max|size larger than/;
  if (failure.code === status.RESOURCE_EXHAUSTED && large.test(failure.details)) {
    found = errors.InvalidRequest;
    facts.reason = "MESSAGE_TOO_LARGE";
  }
  return new found(failure.details || facts.reason, facts);
}

/** Whether the same call may well succeed a moment later. */
export function isTransient(error: unknown): boolean {
  const passing = error instanceof errors.Unavailable || error instanceof errors.Overloaded;
  return passing && error.reason !== TLS_REFUSED;
}

function isServiceError(failure: unknown): failure is ServiceError {
  return failure instanceof Error && "code" in failure && "details" in failure;
}

/** What a google.rpc.Status says of a refusal: its ErrorInfo and its RetryInfo. */
function details(encoded: Uint8Array): Partial<errors.Facts> {
  const found: Partial<errors.Facts> = {};
  for (const any of fields(encoded).get(3) ?? []) {
    const detail = fields(any as Uint8Array);
    const type = text(detail.get(1)?.[0]);
    const value = fields((detail.get(2)?.[0] ?? new Uint8Array()) as Uint8Array);
    if (type.endsWith("/google.rpc.ErrorInfo")) {
      found.reason = text(value.get(1)?.[0]);
      found.metadata = new Map((value.get(3) ?? []).map((entry) => pair(entry as Uint8Array)));
    } else if (type.endsWith("/google.rpc.RetryInfo")) {
      const delay = fields((value.get(1)?.[0] ?? new Uint8Array()) as Uint8Array);
      found.retryAfter = Number(delay.get(1)?.[0] ?? 0) + Number(delay.get(2)?.[0] ?? 0) / 1e9;
    }
  }
  return found;
}

type Value = Uint8Array | number;

/** The fields of any message, by number: bytes as they are, varints as numbers. */
function fields(message: Uint8Array): Map<number, Value[]> {
  const reader = new BinaryReader(message);
  const found = new Map<number, Value[]>();
  while (reader.pos < reader.len) {
    const [number, wire] = reader.tag();
    const values = found.get(number) ?? [];
    found.set(number, values);
    if (wire === 0) values.push(Number(reader.int64()));
    else if (wire === 2) values.push(reader.bytes());
    else reader.skip(wire);
  }
  return found;
}

function pair(entry: Uint8Array): [string, string] {
  const found = fields(entry);
  return [text(found.get(1)?.[0]), text(found.get(2)?.[0])];
}

function text(value: Value | undefined): string {
  return value instanceof Uint8Array ? Buffer.from(value).toString("utf8") : "";
}

/**
 * Everything that can go wrong, as one tree. The classes tell apart what a caller would do
 * about it; the stable `reason` (AIP-193) tells apart the cases, and the message says the
 * next step.
 */

export interface Facts {
  reason: string;
  metadata?: ReadonlyMap<string, string>;
  /** Seconds after which another try makes sense, if the service said so. */
  retryAfter?: number | undefined;
}

export class AcclimateError extends Error {
  readonly reason: string;
  readonly metadata: ReadonlyMap<string, string>;
  readonly retryAfter: number | undefined;

  constructor(message: string, facts: Facts) {
    super(message);
    this.name = new.target.name;
    this.reason = facts.reason;
    this.metadata = facts.metadata ?? new Map();
    this.retryAfter = facts.retryAfter;
  }
}

/** The request is wrong in itself; sending it again will not help. */
export class InvalidRequest extends AcclimateError {}
/** Nothing has the name that was asked for. */
export class NotFound extends AcclimateError {}
/** The id is taken, or the request id was used for another request. */
export class AlreadyExists extends AcclimateError {}
/** The state of things does not allow it: a job has ended, an alias has moved. */
export class Conflict extends AcclimateError {}
/** The caller is not known, or may not do this. */
export class NotAllowed extends AcclimateError {}
/** A bounded queue of the service is full; try again after `retryAfter`. */
export class Overloaded extends AcclimateError {}
/** The service cannot be reached, is draining, or broke off. */
export class Unavailable extends AcclimateError {}
/** No answer in time. */
export class DeadlineExceeded extends AcclimateError {}
/** The service broke a promise: a fault on its side, or an answer that makes no sense. */
export class ServiceFault extends AcclimateError {}

/** The examples differ from those that an upload of this request id began with. */
export class UploadMismatch extends AcclimateError {
  constructor(index: number) {
    super(
      `the first ${index} examples are not those that this upload began with; ` +
        "pass the same examples in the same order, or use a new request id",
      { reason: "UPLOAD_MISMATCH", metadata: new Map([["index", String(index)]]) },
    );
  }
}

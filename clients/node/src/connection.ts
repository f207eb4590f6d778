/** The channel, and what every call on it shares: deadline, credentials, retries. */

import { randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { isIPv4 } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

import {
  Metadata,
  credentials,
  type CallOptions,
  type ChannelCredentials,
  type ClientOptions,
  type ClientUnaryCall,
  type ServiceError,
} from "@grpc/grpc-js";

import { AcclimateError, DeadlineExceeded } from "./errors.js";
import { errorOf, isTransient } from "./status.js";

/** Seconds: the deadline of one resumable stream; the next one goes on from there. */
export const STREAM_SECONDS = 300;
/** Of a call that loads a version before it answers, as the service allows. */
export const LOAD_SECONDS = 300;
/** Of a call that carries a model's files, whose size sets its time. */
export const BULK_SECONDS = 3600;
/** For calls whose second time would be refused, or would act again. */
export const ONCE = { repeats: 0 };

const MESSAGE_BYTES = 64 * 2 ** 20;
/** A connection that lasts so long has answered pings: see keepalive below. */
const HELD_SECONDS = 60;
const FIRST_DELAY = 0.1; // seconds
const LAST_DELAY = 3;

/** PEM files: the roots to trust (else the system's) and, for mTLS, what to show. */
export interface TLS {
  ca?: string;
  certificate?: string;
  key?: string;
  /** The name that the server's certificate is for, where it is not the one that is called. */
  name?: string;
}

export interface Settings {
  /** Seconds for one call, its retries included. */
  timeout?: number;
  /** Seconds for which uploads and watches keep trying without progress. */
  patience?: number;
  /** How often a call that may be repeated is repeated. */
  retries?: number;
  /** A bearer token, sent with every call. */
  token?: string;
  /** Encrypt; `{}` trusts the system's roots. Left out: plain text. */
  tls?: TLS;
}

/** How often a call is repeated at most, and the seconds for all of it. */
export interface Often {
  repeats?: number;
  seconds?: number;
}

/** A unary method of a generated stub, bound to it. */
export type Method<Request, Answer> = (
  request: Request,
  metadata: Metadata,
  options: Partial<CallOptions>,
  callback: (error: ServiceError | null, answer: Answer) => void,
) => ClientUnaryCall;

export class Connection {
  private constructor(
    readonly target: string,
    readonly channel: ChannelCredentials,
    readonly timeout: number,
    readonly patience: number,
    private readonly retries: number,
    private readonly token: string | undefined,
    private readonly name: string | undefined,
  ) {}

  /** @throws RangeError a token would leave this machine in plain text. */
  static async open(target: string, settings: Settings = {}): Promise<Connection> {
    const { tls, token } = settings;
    if (token !== undefined && tls === undefined && !isLoopback(target)) {
      throw new RangeError(`a token would travel in plain text to ${target}; pass tls`);
    }
    return new Connection(
      target,
      tls === undefined ? credentials.createInsecure() : await encrypted(tls),
      settings.timeout ?? 30,
      settings.patience ?? 120,
      settings.retries ?? 5,
      token,
      tls?.name,
    );
  }

  /** What every stub is made with. */
  get options(): Partial<ClientOptions> {
    return {
      "grpc.max_send_message_length": MESSAGE_BYTES,
      "grpc.max_receive_message_length": MESSAGE_BYTES,
      "grpc.initial_reconnect_backoff_ms": 100,
      "grpc.max_reconnect_backoff_ms": 2000,
      // A server that froze, or a network that is gone, is noticed within half a minute.
      "grpc.keepalive_time_ms": 20_000,
      "grpc.keepalive_timeout_ms": 10_000,
      ...(this.name === undefined
        ? {}
        : {
            "grpc.ssl_target_name_override": this.name,
            "grpc.default_authority": this.name,
          }),
    };
  }

  metadata(): Metadata {
    const metadata = new Metadata();
    if (this.token !== undefined) metadata.set("authorization", `Bearer ${this.token}`);
    return metadata;
  }

  /**
   * One unary call, repeated after transient errors if it may be: it reads, or it names a
   * request id or the state to reach.
   */
  call<Request, Answer>(
    method: Method<Request, Answer>,
    request: Request,
    often: Often = {},
  ): Promise<Answer> {
    const once = (deadline: number): Promise<Answer> =>
      new Promise((resolve, reject) => {
        method(request, this.metadata(), { deadline }, (error, answer) => {
          if (error) reject(error);
          else resolve(answer);
        });
      });
    return this.attempt(once, often);
  }

  /** What `once` gives, told the deadline, and again after transient errors. */
  async attempt<Answer>(
    once: (deadline: number) => Promise<Answer>,
    { repeats: most = this.retries, seconds = this.timeout }: Often = {},
  ): Promise<Answer> {
    const deadline = Date.now() + seconds * 1000;
    const delays = new Delays();
    for (let repeats = most; ; repeats -= 1) {
      try {
        return await once(deadline);
      } catch (failure) {
        const error = errorOf(failure);
        const delay = delays.next(error);
        if (!isTransient(error) || repeats === 0 || Date.now() + delay * 1000 >= deadline) {
          throw error;
        }
        await sleep(delay * 1000);
      }
    }
  }
}

/** Everything on all pages of a listing, as the pages come. */
export async function* paged<Page extends { nextPageToken: string }, Item>(
  page: (pageToken: string) => Promise<Page>,
  items: (page: Page) => readonly Item[],
): AsyncGenerator<Item> {
  for (let token: string | undefined; token !== ""; ) {
    const found: Page = await page(token ?? "");
    yield* items(found);
    token = found.nextPageToken;
  }
}

export const newRequestId = (): string => randomUUID();

/** How long to wait before each next attempt: doubling, jittered, never under what was asked. */
class Delays {
  private ceiling = FIRST_DELAY;

  next(error: unknown): number {
    const delay = this.ceiling * (0.5 + Math.random() / 2);
    this.ceiling = Math.min(this.ceiling * 2, LAST_DELAY);
    const asked = error instanceof AcclimateError ? error.retryAfter : undefined;
    return Math.max(delay, asked ?? 0);
  }
}

/**
 * How long a resumable stream keeps trying: so many seconds of failures without getting further.
 *
 * They count from the first failure: before it the stream may have been silent for long, as a
 * job is that tells nothing, or a caller who asks nothing.
 */
export class Patience {
  private until: number | undefined;
  private delays = new Delays();

  constructor(private readonly seconds: number) {}

  /** It got further. */
  renew(): void {
    this.until = undefined;
    this.delays = new Delays();
  }

  /** What began at *since* has ended, and had nothing to tell: if it lasted, it got further. */
  rested(since: number): void {
    if (Date.now() - since >= HELD_SECONDS * 1000) this.renew();
  }

  /** Sleep before the next attempt; throws the error itself where none makes sense. */
  async wait(error: unknown, resumable = false): Promise<void> {
    if (!(resumable || isTransient(error) || error instanceof DeadlineExceeded)) throw error;
    const delay = this.delays.next(error) * 1000;
    this.until ??= Date.now() + this.seconds * 1000;
    if (Date.now() + delay >= this.until) throw error;
    await sleep(delay);
  }
}

async function encrypted(tls: TLS): Promise<ChannelCredentials> {
  const [ca, key, certificate] = await Promise.all(
    [tls.ca, tls.key, tls.certificate].map((path) => (path === undefined ? null : readFile(path))),
  );
  return credentials.createSsl(ca, key, certificate);
}

/** Whether the target cannot leave this machine. */
function isLoopback(target: string): boolean {
  if (target.startsWith("unix:")) return true;
  const host = target.slice(0, target.lastIndexOf(":")).replace(/^\[|\]$/g, "");
  return host === "localhost" || host === "::1" || (isIPv4(host) && host.startsWith("127."));
}

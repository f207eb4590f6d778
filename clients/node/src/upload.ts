/**
 * One upload: a stream of examples that survives broken connections.
 *
 * What was sent and not answered is kept in a bounded window, so that after a break the
 * service says where to go on and nothing that it has answered is sent again. Both ends
 * keep a running digest over the examples, which proves that they speak of the same ones.
 */

import { createHash } from "node:crypto";

import type { ClientDuplexStream } from "@grpc/grpc-js";

import { Patience, STREAM_SECONDS, type Connection } from "./connection.js";
import { AcclimateError, ServiceFault, Unavailable, UploadMismatch } from "./errors.js";
import { errorOf } from "./status.js";
import {
  UploadBatchRequest,
  UploadBatchResponse_Acknowledgement_Outcome as Outcome,
  type AdaptationServiceClient,
  type LabeledBatch,
  type Role,
  type UploadBatchResponse,
  type UploadBatchResponse_Acknowledgement as Acknowledgement,
  type UploadBatchResponse_Opened as Opened,
} from "./stubs/acclimate/v1/adaptation.js";
import { write } from "./writing.js";

const EMPTY_CHAIN = "0".repeat(64);
const WINDOW_EXAMPLES = 256;
const WINDOW_BYTES = 32 * 2 ** 20;
/** Bytes of an image; the service takes 20 MiB, and no message over 64. */
const LARGEST = 32 * 2 ** 20;

/** One labelled image: an encoded JPEG, PNG or WebP file. */
export interface Example {
  image: Uint8Array;
  label: string;
  /** The uploader's own name for it, such as a file name. */
  id?: string;
  /** Slices to judge separately, such as `camera=3`. */
  tags?: readonly string[];
}

export interface UploadResult {
  batch: LabeledBatch;
  accepted: number;
  duplicates: number;
  /** What was refused, and why: it cost only itself. */
  rejected: readonly Acknowledgement[];
  requestId: string;
}

export interface UploadDraft {
  domain: string;
  role: Role;
  requestId: string;
  examples: Iterable<Example> | AsyncIterable<Example>;
  onAcknowledgement?: ((answer: Acknowledgement) => void) | undefined;
}

/** sha256(previous || sha256(image) || label), in lower-case hex. */
export function chainDigest(previous: string, image: Uint8Array, label: string): string {
  const inner = createHash("sha256").update(image).digest();
  const outer = createHash("sha256").update(Buffer.from(previous, "hex"));
  return outer.update(inner).update(label, "utf8").digest("hex");
}

interface Sent {
  index: number;
  message: UploadBatchRequest;
  size: number;
  /** The digest up to and including this example. */
  chain: string;
}

type Duplex = ClientDuplexStream<UploadBatchRequest, UploadBatchResponse>;

/** What comes back on one attempt's call. The window bounds how much can lie here. */
class Inbox {
  private readonly answers: UploadBatchResponse[] = [];
  private failure: unknown;
  private wake: () => void = () => undefined;

  constructor(call: Duplex) {
    call.on("data", (answer: UploadBatchResponse) => this.tell(() => this.answers.push(answer)));
    call.on("error", (error) => this.tell(() => (this.failure ??= error)));
    const early = new Unavailable("the upload's stream ended early", { reason: "STREAM_ENDED" });
    call.on("end", () => this.tell(() => (this.failure ??= early)));
  }

  /** Whether `next` would settle at once. */
  ready(): boolean {
    return this.answers.length > 0 || this.failure !== undefined;
  }

  /** The next answer; throws if the call failed, ended, or stays silent for so many seconds. */
  async next(seconds: number): Promise<UploadBatchResponse["part"]> {
    if (!this.ready()) {
      await new Promise<void>((resolve, reject) => {
        const message = `no answer to the upload for ${seconds} s`;
        const silence = new Unavailable(message, { reason: "STREAM_SILENT" });
        const alarm = setTimeout(() => reject(silence), seconds * 1000);
        this.wake = () => {
          clearTimeout(alarm);
          resolve();
        };
      });
    }
    const answer = this.answers.shift();
    if (answer === undefined) throw this.failure;
    return answer.part;
  }

  private tell(change: () => unknown): void {
    change();
    this.wake();
  }
}

/** An upload under way: what was read, sent and answered, across all its attempts. */
export class Upload {
  private readonly examples: AsyncIterator<Example>;
  private readonly patience: Patience;
  private read = 0;
  private chainRead = EMPTY_CHAIN;
  private answered = 0;
  private chainAnswered = EMPTY_CHAIN;
  private unanswered: Sent[] = [];
  private unansweredBytes = 0;
  private readonly rejected: Acknowledgement[] = [];
  /** Bytes, by index, of what was sent as an empty file. */
  private readonly tooLarge = new Map<number, number>();

  constructor(
    private readonly connection: Connection,
    private readonly stub: AdaptationServiceClient,
    private readonly draft: UploadDraft,
  ) {
    this.examples = each(draft.examples);
    this.patience = new Patience(connection.patience);
  }

  /** Send everything and commit it, through as many attempts as that takes. */
  async run(): Promise<UploadResult> {
    for (;;) {
      const deadline = Date.now() + STREAM_SECONDS * 1000;
      const call = this.stub.uploadBatch(this.connection.metadata(), { deadline });
      try {
        const batch = await this.attempt(call);
        return {
          batch,
          accepted: batch.accepted,
          duplicates: batch.duplicates,
          rejected: this.rejected,
          requestId: this.draft.requestId,
        };
      } catch (failure) {
        const error = errorOf(failure);
        // The service ends a stream that stands still; the upload stays open.
        const open = error instanceof AcclimateError && error.reason === "UPLOAD_INCOMPLETE";
        await this.patience.wait(error, open);
      } finally {
        call.cancel();
      }
    }
  }

  private async attempt(call: Duplex): Promise<LabeledBatch> {
    const inbox = new Inbox(call);
    const next = (): Promise<UploadBatchResponse["part"]> => inbox.next(this.connection.timeout);
    const { domain: parent, role, requestId } = this.draft;
    await write(call, { part: { $case: "open", open: { parent, role, requestId } } });
    const first = await next();
    if (first?.$case === "committed") return first.committed;
    if (first?.$case !== "opened") throw outOfOrder("the batch was not opened first");
    await this.resume(first.opened);
    for (const sent of this.unanswered) await write(call, sent.message);
    for (;;) {
      while (this.windowIsFull() || inbox.ready()) this.take(await next());
      const sent = await this.readNext();
      if (!sent) break;
      await write(call, sent.message);
    }
    const commit = { count: this.read, chain: this.chainRead };
    await write(call, { part: { $case: "commit", commit } });
    for (;;) {
      const part = await next();
      if (part?.$case === "committed") return part.committed;
      this.take(part);
    }
  }

  private windowIsFull(): boolean {
    return this.unanswered.length >= WINDOW_EXAMPLES || this.unansweredBytes >= WINDOW_BYTES;
  }

  /** The next example, entered into the window; undefined after the last. */
  private async readNext(): Promise<Sent | undefined> {
    const { done, value } = await this.examples.next();
    if (done) return undefined;
    let image = Buffer.from(value.image.buffer, value.image.byteOffset, value.image.byteLength);
    if (image.byteLength > LARGEST) {
      // Its message would be refused by the connection, and with it the whole upload.
      this.tooLarge.set(this.read, image.byteLength);
      image = Buffer.alloc(0);
    }
    this.chainRead = chainDigest(this.chainRead, image, value.label);
    const example = {
      image,
      label: value.label,
      id: value.id ?? "",
      tags: [...(value.tags ?? [])],
    };
    const sent = {
      index: this.read,
      message: UploadBatchRequest.create({
        part: { $case: "item", item: { index: this.read, example } },
      }),
      size: image.byteLength,
      chain: this.chainRead,
    };
    this.read += 1;
    this.unanswered.push(sent);
    this.unansweredBytes += sent.size;
    return sent;
  }

  /** Forget the oldest example of the window: the service has answered it. */
  private settle(): void {
    const sent = this.unanswered.shift();
    if (!sent) return;
    this.unansweredBytes -= sent.size;
    this.answered = sent.index + 1;
    this.chainAnswered = sent.chain;
    this.patience.renew();
  }

  /** Go on where the service says, which may be further than was known here. */
  private async resume(opened: Opened): Promise<void> {
    if (opened.nextIndex < this.answered) {
      throw new ServiceFault(
        `${this.answered} examples were acknowledged, but the service wants to go on from ` +
          `${opened.nextIndex}`,
        { reason: "ACKNOWLEDGED_EXAMPLES_LOST" },
      );
    }
    while (this.answered < opened.nextIndex) {
      if (!this.unanswered.length && !(await this.readNext())) {
        throw new UploadMismatch(opened.nextIndex);
      }
      this.settle();
    }
    if (this.chainAnswered !== opened.chain) throw new UploadMismatch(opened.nextIndex);
  }

  private take(part: UploadBatchResponse["part"]): void {
    if (part?.$case !== "acknowledgement") throw outOfOrder("something else was answered");
    const answer = part.acknowledgement;
    if (!this.unanswered.length || answer.index !== this.answered) {
      throw outOfOrder(`example ${answer.index} was answered when ${this.answered} was due`);
    }
    this.settle();
    const size = this.tooLarge.get(answer.index);
    if (size) answer.message = `the file has ${size} bytes; at most 20 MiB are taken`;
    if (answer.outcome === Outcome.OUTCOME_REJECTED) this.rejected.push(answer);
    this.draft.onAcknowledgement?.(answer);
  }
}

async function* each(examples: UploadDraft["examples"]): AsyncGenerator<Example> {
  yield* examples;
}

function outOfOrder(message: string): ServiceFault {
  return new ServiceFault(message, { reason: "ACKNOWLEDGEMENT_OUT_OF_ORDER" });
}

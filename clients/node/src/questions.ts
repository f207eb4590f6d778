/** What a stream of predictions asks: read ahead a little, and asked again if need be. */

import type { ClientDuplexStream } from "@grpc/grpc-js";

import type { PredictRequest, PredictStreamResponse } from "./stubs/acclimate/v1/inference.js";
import { write } from "./writing.js";

const IN_FLIGHT = 32; // requests without an answer

type Duplex = ClientDuplexStream<PredictRequest, PredictStreamResponse>;

export class Questions {
  /** What the caller's own iterable threw. */
  failure: unknown;
  private readonly unanswered: PredictRequest[] = [];
  private answeredCount = 0;
  private allRead = false;
  private reading: Promise<void> | undefined;
  private asking: Duplex | undefined;
  private wake: () => void = () => undefined;

  constructor(private readonly source: AsyncIterator<PredictRequest>) {}

  /** Whether a question was asked that has no answer. */
  get waiting(): boolean {
    return this.unanswered.length > 0;
  }

  /** Whether every question has its answer. */
  get done(): boolean {
    return this.allRead && !this.waiting;
  }

  /** Ask on this call, and on no earlier one, what has no answer and all that follows. */
  async ask(call: Duplex): Promise<void> {
    this.asking = call;
    this.wake();
    for (let place = this.answeredCount; this.asking === call; ) {
      const question = this.unanswered[place - this.answeredCount];
      if (question !== undefined) {
        await write(call, question);
        place += 1;
      } else if (this.allRead) {
        call.end();
        return;
      } else if (this.unanswered.length >= IN_FLIGHT) {
        await new Promise<void>((resolve) => (this.wake = resolve));
      } else {
        await (this.reading ??= this.read());
      }
    }
  }

  /** The oldest question was answered: there is room for another. */
  answered(): void {
    this.unanswered.shift();
    this.answeredCount += 1;
    this.wake();
  }

  /** Ask no further. */
  stop(): void {
    this.asking = undefined;
    this.wake();
  }

  /** Take the next question from the caller's iterable, however long that takes. */
  private async read(): Promise<void> {
    try {
      const { done, value } = await this.source.next();
      if (done) this.allRead = true;
      else this.unanswered.push(value);
    } catch (failure) {
      this.failure = failure;
      this.allRead = true;
    } finally {
      this.reading = undefined;
    }
  }
}

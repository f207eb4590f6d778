/** A job as its owner sees it: where it stands, what it says, how it ended. */

import { setTimeout as sleep } from "node:timers/promises";

import { Patience, STREAM_SECONDS, type Connection } from "./connection.js";
import { DeadlineExceeded } from "./errors.js";
import { errorOf } from "./status.js";
import {
  AdaptationJob_State as State,
  CancelAdaptationJobRequest,
  type AdaptationJob,
  type AdaptationServiceClient,
  type GetReportResponse,
  type JobEvent,
} from "./stubs/acclimate/v1/adaptation.js";

const POLL_MS = 500;

/** Whether the state is terminal: reached once, never left. */
export function ended(state: State): boolean {
  return state !== State.STATE_QUEUED && state !== State.STATE_RUNNING;
}

/** A handle on one job. What it shows is as old as the last call that asked the service. */
export class Job {
  constructor(
    private readonly connection: Connection,
    private readonly stub: AdaptationServiceClient,
    public snapshot: AdaptationJob,
  ) {}

  get name(): string {
    return this.snapshot.name;
  }

  get state(): State {
    return this.snapshot.state;
  }

  /** The version it made; empty if it made none (yet). */
  get version(): string {
    return this.snapshot.version;
  }

  /** Ask the service where the job stands. */
  async refresh(): Promise<this> {
    const get = this.stub.getAdaptationJob.bind(this.stub);
    this.snapshot = await this.connection.call(get, { name: this.name });
    return this;
  }

  /** Ask for its end, and say why; a job that has ended stays as it is. */
  async cancel(reason = ""): Promise<this> {
    const cancel = this.stub.cancelAdaptationJob.bind(this.stub);
    const request = CancelAdaptationJobRequest.fromPartial({ name: this.name, reason });
    this.snapshot = await this.connection.call(cancel, request);
    return this;
  }

  /**
   * Wait until the job has ended, however it ends.
   *
   * @param seconds at most; left out: for ever. The job itself goes on.
   */
  async wait(seconds?: number): Promise<this> {
    const until = seconds === undefined ? Infinity : Date.now() + seconds * 1000;
    const patience = new Patience(this.connection.patience);
    while (!(await this.hasEnded(patience))) {
      if (Date.now() + POLL_MS > until) {
        const message = `${this.name} is still running after ${seconds} s; it goes on`;
        throw new DeadlineExceeded(message, { reason: "WAIT_TIMEOUT" });
      }
      await sleep(POLL_MS);
    }
    return this;
  }

  /**
   * The job's story, event by event, until it has ended. Broken connections are resumed
   * where they broke: no event comes twice and none is left out.
   *
   * @param after only events after this sequence number.
   */
  async *watch(after = 0): AsyncGenerator<JobEvent> {
    const patience = new Patience(this.connection.patience);
    for (;;) {
      const began = Date.now();
      const deadline = began + STREAM_SECONDS * 1000;
      const request = { name: this.name, afterSequence: after };
      const call = this.stub.watchAdaptationJob(request, this.connection.metadata(), { deadline });
      call.on("error", () => undefined); // the loop below throws it
      try {
        for await (const event of call as AsyncIterable<JobEvent>) {
          patience.renew();
          after = event.sequence;
          yield event;
        }
      } catch (failure) {
        const error = errorOf(failure);
        // A quiet job is no absent service: the call below says which.
        if (!(error instanceof DeadlineExceeded)) {
          patience.rested(began);
          await patience.wait(error);
          continue;
        }
      } finally {
        call.cancel(); // a caller that stops early leaves no stream behind
      }
      // A draining server ends its streams as well, so the end alone is no proof.
      if (await this.hasEnded(patience)) return;
    }
  }

  /** The job's report: one HTML page that opens offline, or the same as JSON. */
  async report(format: "html" | "json" = "html"): Promise<Buffer> {
    const deadline = Date.now() + this.connection.timeout * 1000;
    const request = { name: this.name, format };
    const call = this.stub.getReport(request, this.connection.metadata(), { deadline });
    const chunks: Buffer[] = [];
    try {
      for await (const { chunk } of call as AsyncIterable<GetReportResponse>) chunks.push(chunk);
    } catch (failure) {
      throw errorOf(failure);
    }
    return Buffer.concat(chunks);
  }

  /** Whether it has, as far as the service can be asked now. */
  private async hasEnded(patience: Patience): Promise<boolean> {
    try {
      await this.refresh();
    } catch (error) {
      await patience.wait(error);
      return false;
    }
    patience.renew();
    return ended(this.state);
  }
}

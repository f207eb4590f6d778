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
    while (!ended((await this.refresh()).state)) {
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
      const deadline = Date.now() + STREAM_SECONDS * 1000;
      const request = { name: this.name, afterSequence: after };
      const call = this.stub.watchAdaptationJob(request, this.connection.metadata(), { deadline });
      call.on("error", () => undefined); // the loop below throws it
      try {
        for await (const event of call as AsyncIterable<JobEvent>) {
          patience.renew();
          after = event.sequence;
          yield event;
        }
        await this.refresh();
        return;
      } catch (failure) {
        const error = errorOf(failure);
        if (error instanceof DeadlineExceeded) {
          await this.refresh(); // a quiet job is no absent service: this call says which
          patience.renew();
        } else {
          await patience.wait(error);
        }
      } finally {
        call.cancel(); // a caller that stops early leaves no stream behind
      }
    }
  }
}

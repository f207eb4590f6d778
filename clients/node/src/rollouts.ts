/** Versions tried on live traffic before they serve: shadows and canaries of an alias. */

import { ONCE, paged, type Connection } from "./connection.js";
import * as names from "./names.js";
import {
  Rollout_Mode as Mode,
  RolloutServiceClient,
  StartRolloutRequest,
  type Rollout,
  type RolloutLimits,
} from "./stubs/acclimate/v1/rollout.js";

export interface RolloutOptions {
  /** Whose traffic; left out: `production`. It must point at another version. */
  alias?: string;
  /** SHADOW asks the candidate beside the incumbent, CANARY (left out) answers with it. */
  mode?: Mode;
  /** Of the requests, in (0, 1]; left out: 0.1. */
  share?: number;
  /** Move the alias once enough images kept within the limits. */
  promote?: boolean;
  /** What is left out has its default. */
  limits?: Partial<RolloutLimits>;
  /** Kept in the audit log. */
  reason?: string;
}

export class Rollouts {
  private readonly stub: RolloutServiceClient;

  constructor(private readonly connection: Connection) {
    const { target, channel, options } = connection;
    this.stub = new RolloutServiceClient(target, channel, options);
  }

  close(): void {
    this.stub.close();
  }

  /** Try a version (`3`) on a share of an alias's traffic. */
  start(model: string, version: string, options: RolloutOptions = {}): Promise<Rollout> {
    const start = this.stub.startRollout.bind(this.stub);
    const { alias = "production", mode = Mode.MODE_CANARY, share = 0.1, ...rest } = options;
    const request = StartRolloutRequest.fromPartial({
      ...rest,
      alias: names.aliasName(model, alias),
      candidate: names.versionName(version, model),
      mode,
      share,
    });
    // Not repeated: if only the answer got lost, it runs, and a second one is refused.
    return this.connection.call(start, request, ONCE);
  }

  /** One rollout: `digits/20261125-101500-1a2b3c`, or its full name. */
  get(name: string): Promise<Rollout> {
    const get = this.stub.getRollout.bind(this.stub);
    return this.connection.call(get, { name: names.rolloutName(name) });
  }

  /** A model's rollouts, the newest first. */
  list(model: string): AsyncGenerator<Rollout> {
    const list = this.stub.listRollouts.bind(this.stub);
    const parent = names.modelName(model);
    const page = (pageToken: string) =>
      this.connection.call(list, { parent, pageSize: 0, pageToken });
    return paged(page, ({ rollouts }) => rollouts);
  }

  /** End a rollout; the alias stays where it is. One that has ended stays as it is. */
  stop(name: string, reason = ""): Promise<Rollout> {
    const stop = this.stub.stopRollout.bind(this.stub);
    return this.connection.call(stop, { name: names.rolloutName(name), reason });
  }
}

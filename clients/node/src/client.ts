/** The client: upload, adapt, watch, promote and predict, as typed calls. */

import { Access } from "./access.js";
import {
  Connection,
  LOAD_SECONDS,
  ONCE,
  Patience,
  STREAM_SECONDS,
  newRequestId,
  paged,
  type Settings,
} from "./connection.js";
import { Unavailable } from "./errors.js";
import { receiveVersion, register, type VersionFiles } from "./files.js";
import { Job } from "./job.js";
import * as names from "./names.js";
import { Questions } from "./questions.js";
import { Rollouts } from "./rollouts.js";
import { errorOf } from "./status.js";
import {
  AdaptationJob_State as State,
  AdaptationServiceClient,
  AdaptationSpec,
  CreateAdaptationJobRequest,
  Role,
  type Domain,
  type LabeledBatch,
  type UploadBatchResponse_Acknowledgement as Acknowledgement,
} from "./stubs/acclimate/v1/adaptation.js";
import {
  InferenceServiceClient,
  PredictRequest,
  type Drift,
  type PredictResponse,
  type PredictStreamResponse,
} from "./stubs/acclimate/v1/inference.js";
import {
  RegisterModelRequest_Draft as Draft,
  RegistryServiceClient,
  SetAliasRequest,
  WeightsSource_Kind as WeightsKind,
  type Alias,
  type Model,
  type ModelVersion,
  type RegisterModelResponse,
} from "./stubs/acclimate/v1/registry.js";
import { Upload, type Example, type UploadResult } from "./upload.js";

export const DEFAULT_TARGET = "127.0.0.1:50051";

type Given<T extends { fromPartial(object: never): unknown }> = Parameters<T["fromPartial"]>[0];

/** How to spend the adaptation budget; what is left out has the service's default. */
export type AdaptOptions = Partial<AdaptationSpec> & {
  /** The version (`3`) or alias to adapt from; left out: `production`. */
  base?: string;
  /** What makes a repeated call the same call. */
  requestId?: string;
};

/** What a model is registered with; see RegisterModelRequest.Draft in registry.proto. */
export type RegisterOptions = Partial<Draft> & {
  /** A file to send, safetensors or a plain state dict, in place of `weights`. */
  file?: string;
};

export interface PredictOptions {
  /** Where the images come from: the version adapted to it answers. Left out: the model's name decides. */
  domain?: string;
  /** How many classes to name, best first; left out: 5. */
  topK?: number;
  probabilities?: boolean;
  logits?: boolean;
  embeddings?: boolean;
  /** 1 goes before 2, and 2 before 3, while requests wait; left out: 2. */
  priority?: number;
  /** During a canary, equal keys are answered by the same version: a camera's id, say. */
  routingKey?: string;
}

/**
 * A connection to one Acclimate service.
 *
 *     const client = await Client.open("127.0.0.1:50051");
 *     await client.upload("shop", examplesFromFolder("photos/shop"));
 *     const job = await client.adapt("products", "shop", { promoteTo: "production" });
 *     for await (const event of job.watch()) console.log(event.message);
 *     const { version, predictions } = await client.predict("products", [image]);
 */
export class Client {
  /** Tokens and the audit log. */
  readonly access: Access;
  /** Versions tried on live traffic before they serve. */
  readonly rollouts: Rollouts;
  private readonly adaptation: AdaptationServiceClient;
  private readonly registry: RegistryServiceClient;
  private readonly inference: InferenceServiceClient;

  private constructor(private readonly connection: Connection) {
    const { target, channel, options } = connection;
    this.adaptation = new AdaptationServiceClient(target, channel, options);
    this.registry = new RegistryServiceClient(target, channel, options);
    this.inference = new InferenceServiceClient(target, channel, options);
    this.access = new Access(connection);
    this.rollouts = new Rollouts(connection);
  }

  static async open(target = DEFAULT_TARGET, settings: Settings = {}): Promise<Client> {
    return new Client(await Connection.open(target, settings));
  }

  /** Close the connection; calls under way are cancelled. */
  close(): void {
    for (const stub of [this.adaptation, this.registry, this.inference]) stub.close();
    for (const part of [this.access, this.rollouts]) part.close();
  }

  // ── domains and images ─────────────────────────────────────────────────────

  createDomain(id: string, labels: readonly string[], description = ""): Promise<Domain> {
    const create = this.adaptation.createDomain.bind(this.adaptation);
    const request = { domainId: id, labels: [...labels], description, requestId: newRequestId() };
    return this.connection.call(create, request);
  }

  domain(name: string): Promise<Domain> {
    const get = this.adaptation.getDomain.bind(this.adaptation);
    return this.connection.call(get, { name: names.domainName(name) });
  }

  /** All domains, without their counts of images. */
  domains(): AsyncGenerator<Domain> {
    const list = this.adaptation.listDomains.bind(this.adaptation);
    const page = (pageToken: string) => this.connection.call(list, { pageSize: 0, pageToken });
    return paged(page, ({ domains }) => domains);
  }

  /** Delete a domain with its images; refused if a model or a job rests on it. */
  async deleteDomain(name: string, reason = ""): Promise<void> {
    const remove = this.adaptation.deleteDomain.bind(this.adaptation);
    await this.connection.call(remove, { name: names.domainName(name), reason }, ONCE);
  }

  /** A domain's uploads. */
  batches(domain: string): AsyncGenerator<LabeledBatch> {
    const list = this.adaptation.listLabeledBatches.bind(this.adaptation);
    const parent = names.domainName(domain);
    const page = (pageToken: string) =>
      this.connection.call(list, { parent, pageSize: 0, pageToken });
    return paged(page, ({ batches }) => batches);
  }

  /** Take an upload back: the batch of this full name, if no job has learnt from it. */
  async deleteBatch(name: string, reason = ""): Promise<void> {
    const remove = this.adaptation.deleteLabeledBatch.bind(this.adaptation);
    await this.connection.call(remove, { name, reason }, ONCE);
  }

  /**
   * Upload labelled images as one batch, which jobs see once it is whole. Examples are read
   * as they are due. A broken connection is resumed; so is an upload that an earlier call
   * with the same request id began.
   */
  upload(
    domain: string,
    examples: Iterable<Example> | AsyncIterable<Example>,
    options: {
      role?: Role;
      requestId?: string;
      onAcknowledgement?: (answer: Acknowledgement) => void;
    } = {},
  ): Promise<UploadResult> {
    return new Upload(this.connection, this.adaptation, {
      domain: names.domainName(domain),
      role: options.role ?? Role.ROLE_AUTO,
      requestId: options.requestId ?? newRequestId(),
      examples,
      onAcknowledgement: options.onAcknowledgement,
    }).run();
  }

  // ── models and versions ────────────────────────────────────────────────────

  /** Register a model: its weights come from a hub, a package, or a file that is sent. */
  registerModel(id: string, options: RegisterOptions): Promise<RegisterModelResponse> {
    const { file, ...draft } = options;
    const sourceDomain = draft.sourceDomain ? names.domainName(draft.sourceDomain) : "";
    const given = { requestId: newRequestId(), ...draft, modelId: id, sourceDomain };
    if (file !== undefined) given.weights = { kind: WeightsKind.KIND_FILE, reference: "" };
    return register(this.connection, this.registry, Draft.fromPartial(given), file);
  }

  /**
   * Write a version's model.onnx, weights.safetensors and manifest.json into a folder; each is
   * checked against its digest before it gets its name.
   */
  export(version: string, folder: string): Promise<VersionFiles> {
    const { connection, registry } = this;
    return receiveVersion(connection, registry, names.versionName(version), folder);
  }

  /** Give a model the guard policy that its later jobs take over; it is recorded, with why. */
  setGuard(
    model: string,
    options: { preset?: string; overrides?: Record<string, unknown>; reason: string },
  ): Promise<Model> {
    const set = this.registry.setModelGuard.bind(this.registry);
    const { preset = "balanced", overrides, reason } = options;
    return this.connection.call(set, { name: names.modelName(model), preset, overrides, reason });
  }

  /** Make a version of what the guard did not accept; who and why is recorded. */
  force(job: string, reason: string): Promise<ModelVersion> {
    const force = this.registry.forceModelVersion.bind(this.registry);
    return this.connection.call(force, { job: names.jobName(job), reason }, ONCE);
  }

  model(name: string): Promise<Model> {
    const get = this.registry.getModel.bind(this.registry);
    return this.connection.call(get, { name: names.modelName(name) });
  }

  models(): AsyncGenerator<Model> {
    const list = this.registry.listModels.bind(this.registry);
    const page = (pageToken: string) => this.connection.call(list, { pageSize: 0, pageToken });
    return paged(page, ({ models }) => models);
  }

  /** Delete a model that never had a version. */
  async deleteModel(name: string, reason = ""): Promise<void> {
    const remove = this.registry.deleteModel.bind(this.registry);
    await this.connection.call(remove, { name: names.modelName(name), reason }, ONCE);
  }

  /** A model's versions, the newest first. */
  versions(model: string): AsyncGenerator<ModelVersion> {
    const list = this.registry.listModelVersions.bind(this.registry);
    const parent = names.modelName(model);
    const page = (pageToken: string) =>
      this.connection.call(list, { parent, pageSize: 0, pageToken });
    return paged(page, ({ versions }) => versions);
  }

  version(name: string): Promise<ModelVersion> {
    const get = this.registry.getModelVersion.bind(this.registry);
    return this.connection.call(get, { name: names.versionName(name) });
  }

  /** Load and warm the version, then move the alias to it. */
  promote(model: string, version: string, alias = "production", reason = ""): Promise<Alias> {
    const set = this.registry.setAlias.bind(this.registry);
    const request = SetAliasRequest.fromPartial({
      name: names.aliasName(model, alias),
      version: names.versionName(version, model),
      reason,
    });
    return this.connection.call(set, request, { seconds: LOAD_SECONDS });
  }

  /** Point the alias back at where it pointed before. */
  rollback(model: string, alias = "production", reason = ""): Promise<Alias> {
    const back = this.registry.rollbackAlias.bind(this.registry);
    const request = { name: names.aliasName(model, alias), reason };
    return this.connection.call(back, request, { ...ONCE, seconds: LOAD_SECONDS });
  }

  async aliases(model: string): Promise<Alias[]> {
    const list = this.registry.listAliases.bind(this.registry);
    return (await this.connection.call(list, { parent: names.modelName(model) })).aliases;
  }

  /** Remove an alias; nothing is served under it any more. */
  async deleteAlias(model: string, alias: string, reason = ""): Promise<void> {
    const remove = this.registry.deleteAlias.bind(this.registry);
    await this.connection.call(remove, { name: names.aliasName(model, alias), reason }, ONCE);
  }

  /** Delete a version that no alias, no job and no later version needs. */
  async deleteVersion(name: string, reason = ""): Promise<void> {
    const remove = this.registry.deleteModelVersion.bind(this.registry);
    await this.connection.call(remove, { name: names.versionName(name), reason }, ONCE);
  }

  // ── adaptation ─────────────────────────────────────────────────────────────

  /** Start the job that adapts a model to a domain, or bootstraps a bare backbone. */
  async adapt(model: string, domain: string, options: AdaptOptions = {}): Promise<Job> {
    const { base, requestId, ...spec } = options;
    const create = this.adaptation.createAdaptationJob.bind(this.adaptation);
    const request = CreateAdaptationJobRequest.create({
      model: names.modelName(model),
      domain: names.domainName(domain),
      spec: AdaptationSpec.fromPartial(spec as Given<typeof AdaptationSpec>),
      requestId: requestId ?? newRequestId(),
      base: names.baseName(base ?? "", model),
    });
    return new Job(this.connection, this.adaptation, await this.connection.call(create, request));
  }

  async job(name: string): Promise<Job> {
    const get = this.adaptation.getAdaptationJob.bind(this.adaptation);
    const found = await this.connection.call(get, { name: names.jobName(name) });
    return new Job(this.connection, this.adaptation, found);
  }

  /** All jobs, or those of one model, of one domain that is learnt, or in one state; newest first. */
  async *jobs(
    only: { model?: string; domain?: string; state?: State } = {},
  ): AsyncGenerator<Job> {
    const list = this.adaptation.listAdaptationJobs.bind(this.adaptation);
    const model = only.model ? names.modelName(only.model) : "";
    const domain = only.domain ? names.domainName(only.domain) : "";
    const state = only.state ?? State.STATE_UNSPECIFIED;
    const page = (pageToken: string) =>
      this.connection.call(list, { model, domain, state, pageSize: 0, pageToken });
    for await (const found of paged(page, ({ jobs }) => jobs)) {
      yield new Job(this.connection, this.adaptation, found);
    }
  }

  // ── predictions ────────────────────────────────────────────────────────────

  /**
   * Predict on encoded images, in their order, in one request.
   *
   * @param model `digits` (what is in production), `digits@canary` or `digits/3`.
   */
  predict(
    model: string,
    images: readonly Uint8Array[],
    options: PredictOptions = {},
  ): Promise<PredictResponse> {
    const predict = this.inference.predict.bind(this.inference);
    return this.connection.call(predict, question(model, images, options));
  }

  /** How far the images that came in lately lie from the domains that the model knows. */
  drift(model: string): Promise<Drift> {
    const get = this.inference.getDrift.bind(this.inference);
    return this.connection.call(get, { model: names.servedName(model) }, { seconds: 120 });
  }

  /**
   * Predict on a stream of images: an answer or a refusal each, in their order, for as long as
   * the stream lasts. What a broken connection left without an answer is asked again.
   */
  async *predictStream(
    model: string,
    images: Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
    options: PredictOptions = {},
  ): AsyncGenerator<PredictStreamResponse> {
    const source = each(images, (image) => question(model, [image], options));
    const questions = new Questions(source);
    const patience = new Patience(this.connection.patience);
    try {
      while (!questions.done) {
        const began = Date.now();
        const deadline = began + STREAM_SECONDS * 1000;
        const call = this.inference.predictStream(this.connection.metadata(), { deadline });
        call.on("error", () => undefined); // the loop below throws it
        try {
          void questions.ask(call);
          for await (const answer of call as AsyncIterable<PredictStreamResponse>) {
            questions.answered();
            patience.renew();
            yield answer;
          }
          if (!questions.done) {
            const reason = "STREAM_ENDED";
            await patience.wait(new Unavailable("the stream ended early", { reason }));
          }
        } catch (failure) {
          const error = errorOf(failure);
          if (!questions.waiting) patience.rested(began);
          if (questions.failure === undefined) await patience.wait(error);
        } finally {
          call.cancel();
        }
        if (questions.failure !== undefined) throw questions.failure;
      }
    } finally {
      questions.stop();
      void source.return(undefined);
    }
  }
}

async function* each<From, To>(
  items: Iterable<From> | AsyncIterable<From>,
  change: (item: From) => To,
): AsyncGenerator<To> {
  for await (const item of items) yield change(item);
}

function question(model: string, images: readonly Uint8Array[], options: PredictOptions) {
  return PredictRequest.fromPartial({
    ...options,
    model: names.servedName(model),
    images: images.map((image) => Buffer.from(image)),
  });
}

/** The client: upload, adapt, watch, promote and predict, as typed calls. */

import { Connection, STREAM_SECONDS, newRequestId, type Settings } from "./connection.js";
import { Job } from "./job.js";
import * as names from "./names.js";
import { errorOf } from "./status.js";
import {
  AdaptationServiceClient,
  AdaptationSpec,
  CreateAdaptationJobRequest,
  Role,
  type Domain,
  type UploadBatchResponse_Acknowledgement as Acknowledgement,
} from "./stubs/acclimate/v1/adaptation.js";
import {
  InferenceServiceClient,
  PredictRequest,
  type PredictResponse,
  type PredictStreamResponse,
} from "./stubs/acclimate/v1/inference.js";
import {
  RegisterModelRequest_Draft as Draft,
  RegistryServiceClient,
  SetAliasRequest,
  type Alias,
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
export type RegisterOptions = Partial<Draft>;

export interface PredictOptions {
  /** Where the images come from: the version adapted to it answers. Left out: the model's name decides. */
  domain?: string;
  /** How many classes to name, best first; left out: 5. */
  topK?: number;
  probabilities?: boolean;
  logits?: boolean;
  embeddings?: boolean;
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
  private readonly adaptation: AdaptationServiceClient;
  private readonly registry: RegistryServiceClient;
  private readonly inference: InferenceServiceClient;

  private constructor(private readonly connection: Connection) {
    const { target, channel, options } = connection;
    this.adaptation = new AdaptationServiceClient(target, channel, options);
    this.registry = new RegistryServiceClient(target, channel, options);
    this.inference = new InferenceServiceClient(target, channel, options);
  }

  static async open(target = DEFAULT_TARGET, settings: Settings = {}): Promise<Client> {
    return new Client(await Connection.open(target, settings));
  }

  /** Close the connection; calls under way are cancelled. */
  close(): void {
    for (const stub of [this.adaptation, this.registry, this.inference]) stub.close();
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

  /** Register a model whose weights come from a hub or a package. */
  registerModel(id: string, options: RegisterOptions): Promise<RegisterModelResponse> {
    return new Promise((resolve, reject) => {
      const deadline = Date.now() + this.connection.timeout * 1000;
      const call = this.registry.registerModel(
        this.connection.metadata(),
        { deadline },
        (error, answer) => (error ? reject(errorOf(error)) : resolve(answer)),
      );
      const sourceDomain = options.sourceDomain ? names.domainName(options.sourceDomain) : "";
      const given = { requestId: newRequestId(), ...options, modelId: id, sourceDomain };
      call.write({ part: { $case: "draft", draft: Draft.fromPartial(given) } });
      call.write({ part: { $case: "commit", commit: { sha256: "" } } });
      call.end();
    });
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
    return this.connection.call(set, request);
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

  /** Predict on a stream of images: an answer or a refusal each, in their order. */
  async *predictStream(
    model: string,
    images: Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
    options: PredictOptions = {},
  ): AsyncGenerator<PredictStreamResponse> {
    const deadline = Date.now() + STREAM_SECONDS * 1000;
    const call = this.inference.predictStream(this.connection.metadata(), { deadline });
    call.on("error", () => undefined); // the loop below throws it
    const sending = (async () => {
      for await (const image of images) {
        if (call.destroyed) return;
        if (!call.write(question(model, [image], options))) {
          await new Promise((resolve) => call.once("drain", resolve).once("close", resolve));
        }
      }
      call.end();
    })();
    sending.catch((error: Error) => call.destroy(error)); // of the caller's own iterable
    try {
      yield* call as AsyncIterable<PredictStreamResponse>;
      await sending;
    } catch (failure) {
      throw errorOf(failure);
    } finally {
      call.cancel();
    }
  }
}

function question(model: string, images: readonly Uint8Array[], options: PredictOptions) {
  return PredictRequest.fromPartial({
    ...options,
    model: names.servedName(model),
    images: images.map((image) => Buffer.from(image)),
  });
}

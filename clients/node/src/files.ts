/** Files that travel in pieces: weights to the service, a version's files from it. */

import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { mkdir, open, rename, rm, type FileHandle } from "node:fs/promises";
import { join } from "node:path";

import { BULK_SECONDS, type Connection } from "./connection.js";
import { ServiceFault } from "./errors.js";
import {
  type ExportModelVersionResponse,
  type RegisterModelRequest,
  type RegisterModelRequest_Draft as Draft,
  type RegisterModelResponse,
  type RegistryServiceClient,
} from "./stubs/acclimate/v1/registry.js";
import { write } from "./writing.js";

const CHUNK = 2 ** 20;
/** A file's name becomes a path: never what a peer makes up. */
const KNOWN = new Set([
  "model.onnx",
  "weights.safetensors",
  "manifest.json",
  "model.int8.onnx",
  "model.fp16.onnx",
]);

/** What an export wrote: the digests, in lower-case hex, by the files' names in the folder. */
export interface VersionFiles {
  folder: string;
  sha256: ReadonlyMap<string, string>;
}

/** Register a model, with its weights if they are a file, through as many attempts as it takes. */
export function register(
  connection: Connection,
  stub: RegistryServiceClient,
  draft: Draft,
  file: string | undefined,
): Promise<RegisterModelResponse> {
  const once = async (deadline: number): Promise<RegisterModelResponse> => {
    let over = false;
    let settle: (error: Error | null, answer: RegisterModelResponse) => void;
    const answered = new Promise<RegisterModelResponse>((resolve, reject) => {
      settle = (error, answer) => {
        over = true;
        if (error) reject(error);
        else resolve(answer);
      };
    });
    answered.catch(() => undefined); // it is thrown where it is awaited
    const call = stub.registerModel(connection.metadata(), { deadline }, (error, answer) =>
      settle(error, answer),
    );
    try {
      for await (const message of messages(draft, file)) {
        if (over) break; // refused: the rest need not be sent
        await write(call, message);
      }
      call.end();
      return await answered;
    } catch (failure) {
      call.cancel();
      throw failure;
    }
  };
  return connection.attempt(once, file === undefined ? {} : { seconds: BULK_SECONDS });
}

async function* messages(
  draft: Draft,
  file: string | undefined,
): AsyncGenerator<RegisterModelRequest> {
  yield { part: { $case: "draft", draft } };
  let sha256 = "";
  if (file !== undefined) {
    const running = createHash("sha256");
    for await (const chunk of createReadStream(file, { highWaterMark: CHUNK })) {
      running.update(chunk as Buffer);
      yield { part: { $case: "chunk", chunk: chunk as Buffer } };
    }
    sha256 = running.digest("hex");
  }
  yield { part: { $case: "commit", commit: { sha256 } } };
}

/** Write a version's files into a folder, each under its own name only once it is whole. */
export async function receiveVersion(
  connection: Connection,
  stub: RegistryServiceClient,
  name: string,
  folder: string,
): Promise<VersionFiles> {
  await mkdir(folder, { recursive: true });
  const once = async (deadline: number): Promise<VersionFiles> => {
    const call = stub.exportModelVersion({ name }, connection.metadata(), { deadline });
    const sha256 = new Map<string, string>();
    let arriving: Arriving | undefined;
    try {
      for await (const piece of call as AsyncIterable<ExportModelVersionResponse>) {
        if (arriving?.name !== piece.file) {
          if (arriving) sha256.set(arriving.name, await arriving.finish());
          arriving = await Arriving.open(folder, piece.file);
        }
        await arriving.take(piece);
      }
      if (arriving) sha256.set(arriving.name, await arriving.finish());
      return { folder, sha256 };
    } finally {
      call.cancel();
      await arriving?.close();
    }
  };
  return connection.attempt(once, { seconds: BULK_SECONDS });
}

/** A file that is not whole yet, under a name of its own. */
class Arriving {
  private readonly running = createHash("sha256");
  private expected = "";

  private constructor(
    readonly name: string,
    private readonly path: string,
    private readonly partial: string,
    private readonly file: FileHandle,
  ) {}

  static async open(folder: string, name: string): Promise<Arriving> {
    if (!KNOWN.has(name)) throw corrupt(`the export holds an unknown file "${name}"`);
    const partial = join(folder, `.${name}.partial`);
    return new Arriving(name, join(folder, name), partial, await open(partial, "w"));
  }

  async take({ chunk, sha256 }: ExportModelVersionResponse): Promise<void> {
    this.running.update(chunk);
    if (sha256) this.expected = sha256;
    await this.file.writeFile(chunk);
  }

  /** Give the file its name, if it is what its digest says; the digest. */
  async finish(): Promise<string> {
    const found = this.running.digest("hex");
    if (found !== this.expected) {
      throw corrupt(`${this.name} arrived with the digest ${found}, not "${this.expected}"`);
    }
    await this.file.sync();
    await rename(this.partial, this.path);
    await this.file.close();
    return found;
  }

  /** Leave nothing half written behind. */
  async close(): Promise<void> {
    await this.file.close().catch(() => undefined);
    await rm(this.partial, { force: true });
  }
}

function corrupt(message: string): ServiceFault {
  return new ServiceFault(message, { reason: "EXPORT_CORRUPT" });
}

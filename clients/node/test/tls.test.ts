/**
 * The client against a service that asks for certificates, which
 * tests/acceptance/test_node_client.py starts: ACCLIMATE_TLS_SERVER is where it listens,
 * ACCLIMATE_TLS_FOLDER has ca.pem, and client.pem and client.key of its authority.
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { join } from "node:path";

import { Client, Unavailable, type TLS } from "../src/index.js";

const target = process.env["ACCLIMATE_TLS_SERVER"];
const folder = process.env["ACCLIMATE_TLS_FOLDER"] ?? "";
const ca = join(folder, "ca.pem");
const own = { certificate: join(folder, "client.pem"), key: join(folder, "client.key") };
const skip = target === undefined && "it needs a service with TLS";

async function models(where: string, tls?: TLS): Promise<number> {
  const client = await Client.open(where, { timeout: 5, retries: 0, ...(tls && { tls }) });
  try {
    let count = 0;
    for await (const _ of client.models()) count += 1;
    return count;
  } finally {
    client.close();
  }
}

test("who shows a certificate of the authority is answered", { skip }, async () => {
  assert.equal(await models(target!, { ca, ...own }), 0);
});

test("the name of the certificate may be another than the one called", { skip }, async () => {
  const elsewhere = target!.replace("127.0.0.1", "127.0.0.2");
  await assert.rejects(models(elsewhere, { ca, ...own }), Unavailable);
  assert.equal(await models(elsewhere, { ca, ...own, name: "localhost" }), 0);
});

test("who shows none, or does not trust the authority, is told at once", { skip }, async () => {
  await assert.rejects(models(target!, { ca }), Unavailable);
  await assert.rejects(models(target!, own), (error) => {
    assert(error instanceof Unavailable);
    assert.equal(error.reason, "TLS_REFUSED");
    return true;
  });
  await assert.rejects(models(target!), Unavailable);
});

test("a key without its certificate is refused before anything is called", { skip }, async () => {
  await assert.rejects(Client.open(target!, { tls: { ca, key: own.key } }));
});

/**
 * The client against a service that asks for certificates, which
 * tests/acceptance/test_node_client.py starts: ACCLIMATE_TLS_SERVER is where it listens,
 * ACCLIMATE_TLS_FOLDER has ca.pem, and client.pem and client.key of its authority, and
 * ACCLIMATE_ROOT is the token of an admin.
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

import { AccessRole, Client, NotAllowed, NotFound, Unavailable, type TLS } from "../src/index.js";

const target = process.env["ACCLIMATE_TLS_SERVER"];
const folder = process.env["ACCLIMATE_TLS_FOLDER"] ?? "";
const ca = join(folder, "ca.pem");
const own = { certificate: join(folder, "client.pem"), key: join(folder, "client.key") };
const root = process.env["ACCLIMATE_ROOT"] ?? "";
const skip = target === undefined && "it needs a service with TLS";

async function models(where: string, tls?: TLS): Promise<number> {
  const client = await Client.open(where, {
    timeout: 10,
    retries: 0,
    ...(tls && { tls, token: root }),
  });
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
  await assert.rejects(models("127.0.0.1:" + target!.split(":")[1]), Unavailable);
});

test("a key without its certificate is refused before anything is called", { skip }, async () => {
  await assert.rejects(Client.open(target!, { tls: { ca, key: own.key } }));
});

test("tokens are made, limited, rotated and revoked, and the log says by whom", { skip }, async () => {
  const tls = { ca, ...own };
  const admin = await Client.open(target!, { tls, token: root });
  const limits = { models: ["digits"], lifetime: 3600 };
  const made = await admin.access.createToken("camera-7", [AccessRole.ACCESS_ROLE_PREDICT], limits);
  assert(made.token?.expireTime);
  const camera = await Client.open(target!, { tls, token: made.secret });
  try {
    const none = [Buffer.from("no image")];
    await assert.rejects(camera.predict("digits", none), NotFound); // allowed, and not there
    await assert.rejects(camera.predict("other", none), NotAllowed);
    await assert.rejects(camera.promote("digits", "1"), NotAllowed);
    const rotated = await admin.access.rotateToken("camera-7", { overlap: 600 });
    assert.notEqual(rotated.secret, made.secret);
    await admin.access.revokeToken(made.token!.name);
    await sleep(3000); // "within seconds"
    await assert.rejects(camera.predict("digits", none), NotAllowed);
    const known: [string, boolean][] = [];
    for await (const one of admin.access.tokens()) {
      known.push([one.principal, one.revokeTime !== undefined]);
    }
    assert.deepEqual(known.sort(), [["camera-7", false], ["camera-7", true], ["root", false]]);
    for await (const entry of admin.access.audit({ who: "root", action: "RevokeToken" })) {
      assert.equal(entry.subject, made.token!.name);
      assert(entry.time instanceof Date);
      return;
    }
    assert.fail("nothing was logged");
  } finally {
    camera.close();
    admin.close();
  }
});

/** Tokens and the audit log: who may do what, and who did. Every call needs an admin. */

import { ONCE, paged, type Connection } from "./connection.js";
import {
  AccessServiceClient,
  CreateTokenRequest,
  ListAuditEntriesRequest,
  type AccessRole,
  type AuditEntry,
  type CreateTokenResponse,
  type RotateTokenResponse,
  type Token,
} from "./stubs/acclimate/v1/access.js";

export interface TokenOptions {
  /** Ids, or prefixes that end in `*`, that it is limited to; with limits of one kind only, nothing of the other is in reach. */
  models?: readonly string[];
  domains?: readonly string[];
  /** `CN:…`, `DNS:…` or `URI:…` of a client certificate that stands for the principal. */
  certificate?: string;
  /** Seconds; left out: until it is revoked. */
  lifetime?: number;
}

export class Access {
  private readonly stub: AccessServiceClient;

  constructor(private readonly connection: Connection) {
    const { target, channel, options } = connection;
    this.stub = new AccessServiceClient(target, channel, options);
  }

  close(): void {
    this.stub.close();
  }

  /** Make a token; its secret is told once, and kept nowhere. */
  createToken(
    principal: string,
    roles: readonly AccessRole[],
    { lifetime, ...limits }: TokenOptions = {},
  ): Promise<CreateTokenResponse> {
    const create = this.stub.createToken.bind(this.stub);
    const request = CreateTokenRequest.fromPartial({
      principal,
      roles: [...roles],
      models: [...(limits.models ?? [])],
      domains: [...(limits.domains ?? [])],
      certificate: limits.certificate ?? "",
      lifetime: duration(lifetime),
    });
    // Not repeated: a second one would be made if only the answer got lost.
    return this.connection.call(create, request, ONCE);
  }

  /**
   * Make a principal's next token, with the same roles and limits.
   *
   * @param overlap seconds for which the old ones stay good.
   */
  rotateToken(
    principal: string,
    { overlap = 0, lifetime }: { overlap?: number; lifetime?: number } = {},
  ): Promise<RotateTokenResponse> {
    const rotate = this.stub.rotateToken.bind(this.stub);
    const request = { principal, overlap: duration(overlap), lifetime: duration(lifetime) };
    return this.connection.call(rotate, request, ONCE);
  }

  /** End a token, on every server within seconds. */
  revokeToken(token: string): Promise<Token> {
    const revoke = this.stub.revokeToken.bind(this.stub);
    const name = token.includes("/") ? token : `tokens/${token}`;
    return this.connection.call(revoke, { name });
  }

  /** All tokens, by principal; those that have ended too. */
  tokens(): AsyncGenerator<Token> {
    const list = this.stub.listTokens.bind(this.stub);
    const page = (pageToken: string) => this.connection.call(list, { pageSize: 0, pageToken });
    return paged(page, ({ tokens }) => tokens);
  }

  /** The audit log, newest first; `subject` also finds what lies under it. */
  audit(
    only: { who?: string; action?: string; subject?: string; since?: Date; until?: Date } = {},
  ): AsyncGenerator<AuditEntry> {
    const list = this.stub.listAuditEntries.bind(this.stub);
    const { since: startTime, until: endTime, ...rest } = only;
    const page = (pageToken: string) => {
      const request = { ...rest, startTime, endTime, pageSize: 200, pageToken };
      return this.connection.call(list, ListAuditEntriesRequest.fromPartial(request));
    };
    return paged(page, ({ entries }) => entries);
  }
}

function duration(seconds: number | undefined): { seconds: number; nanos: number } | undefined {
  if (seconds === undefined) return undefined;
  const whole = Math.floor(seconds);
  return { seconds: whole, nanos: Math.round((seconds - whole) * 1e9) };
}

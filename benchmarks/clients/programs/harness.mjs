// Runs a program in its environment: `node harness.mjs PROGRAM REQUEST`; appends a line of JSON per folder.
import { appendFileSync, readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const { embed } = await import(pathToFileURL(process.argv[2]));
const request = JSON.parse(readFileSync(process.argv[3], "utf-8"));
for (const [kind, folder] of Object.entries(request.folders)) {
  const rows = embed(folder, request.sentences);
  const answer = await rows.then((rows) => ({ rows }), (error) => ({ error: String(error) }));
  appendFileSync(request.answers, JSON.stringify({ kind, ...answer }) + "\n");
}

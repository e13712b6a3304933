// `new Tokenizer(tokenizer.json, tokenizer_config.json)`
import { readFileSync } from "node:fs";
import { Tokenizer } from "@huggingface/tokenizers";

export async function embed(folder, sentences) {
  const read = (name) => JSON.parse(readFileSync(`${folder}/${name}`, "utf-8"));
  const tokenizer = new Tokenizer(read("tokenizer.json"), read("tokenizer_config.json"));
  return sentences.map((sentence) => Array.from(tokenizer.encode(sentence).ids));
}

// `AutoTokenizer.from_pretrained(folder)`
import { basename, dirname } from "node:path";
import { AutoTokenizer, env } from "@huggingface/transformers";

env.allowRemoteModels = false;

export async function embed(folder, sentences) {
  env.localModelPath = dirname(folder);
  const tokenizer = await AutoTokenizer.from_pretrained(basename(folder));
  return sentences.map((sentence) => Array.from(tokenizer(sentence, { truncation: true }).input_ids.data, Number));
}

// Runs a GGUF file in llama.cpp: reads {file, tokens, newTokens, texts} from the file named by the first argument, and
// writes to the file named by the second the tokens of the texts, the logits behind each of `tokens`, and the tokens
// that follow greedily.
import {readFileSync, writeFileSync} from "node:fs";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const {file, tokens, newTokens, texts} = JSON.parse(readFileSync(process.argv[2], "utf8"));
const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error, maxThreads: 2});
const model = await llama.loadModel({modelPath: file});
const context = await model.createContext({
  contextSize: tokens.length + newTokens,
  batchSize: tokens.length,
  flashAttention: false,
  experimentalKvCacheKeyType: "F32", // by default float16, of keys and values alike
  experimentalKvCacheValueType: "F32",
});

const sequence = context.getSequence();
const asked = tokens.map((token) => [token, {generateNext: {logits: true}}]);
const answered = await sequence.controlledEvaluate(asked);
const logits = answered.map(({next}) => {
  const row = new Array(next.logits.size);
  for (const [token, logit] of next.logits) row[token] = logit;
  return row;
});

const greedy = [];
let row = logits.at(-1);
while (greedy.length < newTokens) {
  greedy.push(row.indexOf(Math.max(...row)));
  const [{next}] = await sequence.controlledEvaluate([[greedy.at(-1), {generateNext: {logits: true}}]]);
  row = [];
  for (const [token, logit] of next.logits) row[token] = logit;
}

const {bos, eos} = model.tokens;
const encoded = texts.map((text) => [...model.tokenize(text)]);
writeFileSync(process.argv[3], JSON.stringify({texts: encoded, logits, greedy, bos, eos}));
process.exit(0);

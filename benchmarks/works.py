"""The pieces of work that are compared."""

import torch

import headwater as hw

IG_POINTS = 16
"""Points on the path of integrated gradients."""


class Works:
    """Bare Hugging Face passes, and headwater's runs over the same prompts."""

    def __init__(self, model: hw.Model, task: hw.Task) -> None:
        self.model, self.task = model, task
        (self.batch,) = task.batches(model.tokenizer, batch_size=len(task))
        for parameter in model.module.parameters():
            parameter.requires_grad_(False)

    def forward(self, mode=torch.no_grad) -> torch.Tensor:
        """One bare forward over the prompts of one side, unembedding every position."""
        with mode():
            return self.model.module(input_ids=self.batch.clean, use_cache=False).logits

    def forward_backward(self) -> None:
        """A bare forward and a backward to the embeddings, parameters frozen."""
        module = self.model.module
        embedded = module.transformer.wte(self.batch.clean).requires_grad_()
        logits = module(inputs_embeds=embedded, use_cache=False).logits[:, -1]
        right = logits.gather(1, self.batch.answer).sum()
        (right - logits.gather(1, self.batch.wrong).sum()).backward()

    def bare(self) -> None:
        """What a gradient attribution cannot do without: a forward and a forward-backward."""
        self.forward()
        self.forward_backward()

    def gradient(self) -> hw.Attribution:
        """Gradient scores of all heads, MLPs and neurons."""
        chosen = hw.heads() + hw.mlps() + hw.neurons()
        return hw.attribute(self.model, self.task, chosen, hw.Gradient(), progress=False)

    def gradient_heads(self) -> hw.Attribution:
        """Gradient scores of all heads and MLPs."""
        chosen = hw.heads() + hw.mlps()
        return hw.attribute(self.model, self.task, chosen, hw.Gradient(), progress=False)

    def exact(self) -> hw.Attribution:
        """Exact effects of all heads."""
        return hw.attribute(self.model, self.task, hw.heads(), hw.Exact(), progress=False)

    def attention(self, estimator: hw.Estimator) -> hw.Attribution:
        """Scores of all queries, keys, heads and MLPs."""
        chosen = hw.queries() + hw.keys() + hw.heads() + hw.mlps()
        return hw.attribute(self.model, self.task, chosen, estimator, progress=False)

    def gradient_attention(self) -> hw.Attribution:
        """Their gradient scores."""
        return self.attention(hw.Gradient())

    def star(self) -> hw.Attribution:
        """AtP* with the query and key fix, without GradDrop."""
        return self.attention(hw.AtPStar(grad_drop=False))

    def star_drop(self) -> hw.Attribution:
        """AtP* with GradDrop over all layers."""
        return self.attention(hw.AtPStar())

    def along_inputs(self) -> hw.Attribution:
        """Integrated gradients of heads and MLPs along the input's path."""
        path = hw.IntegratedGradients(path="inputs", rule="midpoint", steps=IG_POINTS)
        chosen = hw.heads() + hw.mlps()
        return hw.attribute(self.model, self.task, chosen, path, progress=False)

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource/plugin"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/structpb"
)

// realVersion is the version of the plugin whose behaviour this one follows.
const realVersion = "1.2.1"

// provider answers the engine's calls. It keeps nothing between them.
type provider struct {
	pulumirpc.UnimplementedResourceProviderServer
	engine pulumirpc.EngineClient
	ctx    context.Context // ends when the engine cancels, interrupts or disappears
	cancel context.CancelFunc
}

// operation is one call about one resource.
type operation struct {
	ctx      context.Context
	provider *provider
	urn      string
}

// begin returns an operation that ends with its call or with the whole provider, and its clean-up.
func (p *provider) begin(ctx context.Context, urn string) (operation, func()) {
	ctx, cancel := context.WithCancel(ctx)
	release := context.AfterFunc(p.ctx, cancel)
	return operation{ctx, p, urn}, func() { release(); cancel() }
}

// log shows a message beside the resource; a passing one is replaced by the next.
func (o operation) log(severity pulumirpc.LogSeverity, passing bool, message string) {
	// A message that doesn't arrive must not fail the operation.
	_, _ = o.provider.engine.Log(o.ctx, &pulumirpc.LogRequest{
		Severity: severity, Message: strings.ToValidUTF8(message, "\uFFFD"), Urn: o.urn, Ephemeral: passing,
	})
}

func (p *provider) Handshake(
	context.Context, *pulumirpc.ProviderHandshakeRequest,
) (*pulumirpc.ProviderHandshakeResponse, error) {
	return &pulumirpc.ProviderHandshakeResponse{AcceptSecrets: true}, nil
}

func (p *provider) Configure(context.Context, *pulumirpc.ConfigureRequest) (*pulumirpc.ConfigureResponse, error) {
	return &pulumirpc.ConfigureResponse{AcceptSecrets: true, SupportsPreview: true}, nil
}

func (p *provider) CheckConfig(_ context.Context, req *pulumirpc.CheckRequest) (*pulumirpc.CheckResponse, error) {
	return &pulumirpc.CheckResponse{Inputs: req.GetNews()}, nil
}

func (p *provider) DiffConfig(context.Context, *pulumirpc.DiffRequest) (*pulumirpc.DiffResponse, error) {
	return &pulumirpc.DiffResponse{Changes: pulumirpc.DiffResponse_DIFF_NONE}, nil
}

func (p *provider) GetPluginInfo(context.Context, *emptypb.Empty) (*pulumirpc.PluginInfo, error) {
	return &pulumirpc.PluginInfo{Version: realVersion}, nil
}

func (p *provider) Cancel(context.Context, *emptypb.Empty) (*emptypb.Empty, error) {
	p.cancel()
	return &emptypb.Empty{}, nil
}

func (p *provider) Check(_ context.Context, req *pulumirpc.CheckRequest) (*pulumirpc.CheckResponse, error) {
	fields, known := schemas[req.GetType()]
	if !known {
		return nil, fmt.Errorf("the command plugin of a rehearsal knows no resource of type %q", req.GetType())
	}
	news, err := unmarshal(req.GetNews())
	if err != nil {
		return nil, err
	}
	checked, failures := checkInputs(fields, news, "")
	inputs, err := marshal(checked)
	if err != nil {
		return nil, err
	}
	response := &pulumirpc.CheckResponse{Inputs: inputs}
	for _, f := range failures {
		response.Failures = append(response.Failures, &pulumirpc.CheckFailure{Property: f.property, Reason: f.reason})
	}
	return response, nil
}

func (p *provider) Diff(_ context.Context, req *pulumirpc.DiffRequest) (*pulumirpc.DiffResponse, error) {
	olds, err := unmarshal(req.GetOldInputs())
	if err != nil {
		return nil, err
	}
	news, err := unmarshal(req.GetNews())
	if err != nil {
		return nil, err
	}
	return diffInputs(olds, news), nil
}

// diffInputs says what a change of inputs means: triggers replace the resource, anything else updates it.
func diffInputs(olds, news resource.PropertyMap) *pulumirpc.DiffResponse {
	diff := plainMap(olds).Diff(plainMap(news), resource.IsInternalPropertyKey)
	if diff == nil {
		return &pulumirpc.DiffResponse{Changes: pulumirpc.DiffResponse_DIFF_NONE}
	}
	response := &pulumirpc.DiffResponse{
		Changes:         pulumirpc.DiffResponse_DIFF_SOME,
		HasDetailedDiff: true,
		DetailedDiff:    map[string]*pulumirpc.PropertyDiff{},
	}
	for _, key := range diff.Keys() {
		response.Diffs = append(response.Diffs, string(key))
	}
	for path, change := range plugin.NewDetailedDiffFromObjectDiff(diff, true) {
		if top, _, _ := strings.Cut(path, "["); top == "triggers" {
			change.Kind = change.Kind.AsReplace()
			response.Replaces = append(response.Replaces, path)
		}
		// The kinds have the same order on the wire.
		response.DetailedDiff[path] = &pulumirpc.PropertyDiff{
			Kind: pulumirpc.PropertyDiff_Kind(change.Kind), InputDiff: change.InputDiff,
		}
	}
	return response
}

func (p *provider) Create(ctx context.Context, req *pulumirpc.CreateRequest) (*pulumirpc.CreateResponse, error) {
	inputs, err := unmarshal(req.GetProperties())
	if err != nil {
		return nil, err
	}
	op, done := p.begin(ctx, req.GetUrn())
	defer done()
	outputs, err := op.apply(req.GetType(), nil, inputs, req.GetPreview())
	if err != nil {
		return nil, err
	}
	properties, err := marshal(outputs)
	if err != nil {
		return nil, err
	}
	id, err := resource.NewUniqueHex(req.GetName(), 8, 0)
	if err != nil {
		return nil, err
	}
	return &pulumirpc.CreateResponse{Id: id, Properties: properties}, nil
}

func (p *provider) Update(ctx context.Context, req *pulumirpc.UpdateRequest) (*pulumirpc.UpdateResponse, error) {
	state, err := unmarshal(req.GetOlds())
	if err != nil {
		return nil, err
	}
	inputs, err := unmarshal(req.GetNews())
	if err != nil {
		return nil, err
	}
	op, done := p.begin(ctx, req.GetUrn())
	defer done()
	outputs, err := op.apply(req.GetType(), state, inputs, req.GetPreview())
	if err != nil {
		return nil, err
	}
	properties, err := marshal(outputs)
	if err != nil {
		return nil, err
	}
	return &pulumirpc.UpdateResponse{Properties: properties}, nil
}

// Read reports what the state says: like the real plugin, this one never sees drift.
func (p *provider) Read(_ context.Context, req *pulumirpc.ReadRequest) (*pulumirpc.ReadResponse, error) {
	return &pulumirpc.ReadResponse{Id: req.GetId(), Properties: req.GetProperties(), Inputs: req.GetInputs()}, nil
}

func (p *provider) Delete(ctx context.Context, req *pulumirpc.DeleteRequest) (*emptypb.Empty, error) {
	state, err := unmarshal(req.GetProperties())
	if err != nil {
		return nil, err
	}
	op, done := p.begin(ctx, req.GetUrn())
	defer done()
	if req.GetType() != copyToRemote {
		var command commandInputs
		if err := decode(state, &command); err != nil {
			return nil, err
		}
		if command.Delete != nil {
			if _, err := op.run(*command.Delete, command); err != nil {
				return nil, err
			}
		}
	}
	return &emptypb.Empty{}, nil
}

// apply creates a resource (without a state) or updates it, and returns its outputs. A preview touches nothing.
func (o operation) apply(
	resourceType string, state, inputs resource.PropertyMap, preview bool,
) (resource.PropertyMap, error) {
	outputs := maps.Clone(inputs)
	if resourceType == copyToRemote {
		if preview {
			return outputs, nil
		}
		return outputs, o.copyIfChanged(state, inputs)
	}
	if preview {
		unknown := resource.MakeComputed(resource.NewProperty(""))
		outputs["stdout"], outputs["stderr"] = unknown, unknown
		return outputs, nil
	}

	var command commandInputs
	if err := decode(inputs, &command); err != nil {
		return nil, err
	}
	var result commandResult
	if err := decode(state, &result); err != nil {
		return nil, err
	}
	script := command.Create
	if state != nil && command.Update != nil {
		script = command.Update
	}
	if script != nil {
		var err error
		command.previous = result
		if result, err = o.run(*script, command); err != nil {
			return nil, err
		}
	}
	outputs["stdout"], outputs["stderr"] = resource.NewProperty(result.Stdout), resource.NewProperty(result.Stderr)
	return outputs, nil
}

func unmarshal(properties *structpb.Struct) (resource.PropertyMap, error) {
	return plugin.UnmarshalProperties(properties, plugin.MarshalOptions{
		KeepUnknowns: true, KeepSecrets: true, ComputeAssetHashes: true, PropagateNil: true,
	})
}

func marshal(properties resource.PropertyMap) (*structpb.Struct, error) {
	return plugin.MarshalProperties(properties, plugin.MarshalOptions{KeepUnknowns: true, KeepSecrets: true})
}

// decode fills a structure from the properties that its json tags name; the others (assets) are left alone.
func decode(properties resource.PropertyMap, into any) error {
	text, err := json.Marshal(plainMap(properties).Mappable())
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
)

// commandInputs are the inputs of a remote or a local command; a local one has no connection.
type commandInputs struct {
	Connection             *connection       `json:"connection"`
	Create                 *string           `json:"create"`
	Update                 *string           `json:"update"`
	Delete                 *string           `json:"delete"`
	Stdin                  string            `json:"stdin"`
	Environment            map[string]string `json:"environment"`
	Logging                string            `json:"logging"`
	AddPreviousOutputInEnv bool              `json:"addPreviousOutputInEnv"`
	Interpreter            []string          `json:"interpreter"`
	Dir                    string            `json:"dir"`

	previous commandResult
}

// commandResult is what a command printed, without one closing newline.
type commandResult struct {
	Stdout string `json:"stdout"`
	Stderr string `json:"stderr"`
}

// previousOutput returns what the command before this one printed, under the names that the real plugin gives it.
func (c commandInputs) previousOutput() map[string]string {
	result := map[string]string{}
	if c.AddPreviousOutputInEnv && c.previous.Stdout != "" {
		result["PULUMI_COMMAND_STDOUT"] = c.previous.Stdout
	}
	if c.AddPreviousOutputInEnv && c.previous.Stderr != "" {
		result["PULUMI_COMMAND_STDERR"] = c.previous.Stderr
	}
	return result
}

// run runs a command and returns its output. The error of a failed command holds the command and all its output,
// whatever logging says: so does the real plugin's, and no stack may rely on anything better.
func (o operation) run(script string, command commandInputs) (commandResult, error) {
	both := &sharedBuffer{}
	stdout := &recorder{both: both, show: o.shower(command.Logging, "stdout")}
	stderr := &recorder{both: both, show: o.shower(command.Logging, "stderr")}
	execute := o.runLocal
	if command.Connection != nil {
		execute = o.runRemote
	}
	started, err := execute(script, command, stdout, stderr)
	stdout.end()
	stderr.end()
	switch {
	case err != nil && o.ctx.Err() != nil:
		return commandResult{}, fmt.Errorf("cancelled while running %q", script)
	case err != nil && started:
		return commandResult{}, fmt.Errorf("%w: running %q:\n%s", err, script, both.buffer.String())
	case err != nil:
		return commandResult{}, err
	}
	return commandResult{
		Stdout: strings.TrimSuffix(stdout.stream.String(), "\n"),
		Stderr: strings.TrimSuffix(stderr.stream.String(), "\n"),
	}, nil
}

// runRemote runs the command in a session of its own. started tells a failure of the command from one before it.
func (o operation) runRemote(script string, command commandInputs, stdout, stderr io.Writer) (started bool, err error) {
	client, closeAll, err := o.connect(*command.Connection)
	if err != nil {
		return false, err
	}
	defer closeAll()
	session, err := client.NewSession()
	if err != nil {
		return false, err
	}
	defer session.Close()
	for name, value := range command.Environment {
		if err := session.Setenv(name, value); err != nil {
			return false, fmt.Errorf("could not set environment variable %q: %w", name, err)
		}
	}
	for name, value := range command.previousOutput() {
		if err := session.Setenv(name, value); err != nil {
			o.log(pulumirpc.LogSeverity_WARNING, false, fmt.Sprintf(
				"Unable to set '%s' environment variable: the SSH server must accept it (AcceptEnv), "+
					"or addPreviousOutputInEnv be false", name))
		}
	}
	session.Stdin = strings.NewReader(command.Stdin)
	session.Stdout, session.Stderr = stdout, stderr
	return true, session.Run(script)
}

func (o operation) runLocal(script string, command commandInputs, stdout, stderr io.Writer) (started bool, err error) {
	interpreter := command.Interpreter
	if len(interpreter) == 0 {
		interpreter = []string{"/bin/sh", "-c"}
	}
	process := exec.CommandContext(o.ctx, interpreter[0], append(interpreter[1:], script)...)
	process.Dir = command.Dir
	process.Env = os.Environ()
	for _, variables := range []map[string]string{command.Environment, command.previousOutput()} {
		for name, value := range variables {
			process.Env = append(process.Env, name+"="+value)
		}
	}
	process.Stdin = strings.NewReader(command.Stdin)
	process.Stdout, process.Stderr = stdout, stderr
	process.Cancel = func() error { return process.Process.Signal(os.Interrupt) }
	process.WaitDelay = killDelay
	return true, process.Run()
}

// killDelay is how long an interrupted local command may take to end.
const killDelay = 2 * time.Second

// shower returns the function that shows a line of one stream, or nil where it is not to be shown.
func (o operation) shower(logging, stream string) func(string) {
	if logging != "" && logging != stream && logging != "stdoutAndStderr" {
		return nil
	}
	return func(line string) { o.log(pulumirpc.LogSeverity_INFO, false, line) }
}

// recorder keeps what one stream of a command prints, adds it to the record of both streams, and shows whole lines.
// A line may have any length: the real plugin hangs on one of more than 64 KiB.
type recorder struct {
	stream bytes.Buffer
	both   *sharedBuffer
	show   func(line string)
	line   []byte // the line that has begun
}

func (r *recorder) Write(data []byte) (int, error) {
	r.stream.Write(data)
	r.both.Write(data)
	if r.show != nil {
		r.line = append(r.line, data...)
		for {
			line, rest, whole := bytes.Cut(r.line, []byte("\n"))
			if !whole {
				break
			}
			r.show(string(line))
			r.line = rest
		}
	}
	return len(data), nil
}

// end shows a last line without a newline.
func (r *recorder) end() {
	if len(r.line) > 0 {
		r.show(string(r.line))
		r.line = nil
	}
}

// sharedBuffer takes what two streams write at the same time.
type sharedBuffer struct {
	lock   sync.Mutex
	buffer bytes.Buffer
}

func (b *sharedBuffer) Write(data []byte) {
	b.lock.Lock()
	defer b.lock.Unlock()
	b.buffer.Write(data)
}

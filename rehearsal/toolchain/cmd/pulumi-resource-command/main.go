// Command pulumi-resource-command stands in for Pulumi's command plugin in a rehearsal on a machine where the real one
// can't be had. It offers what a stack can use (remote and local commands, copies over SFTP) with the real plugin's
// inputs, defaults, life cycle and error texts, through the same SSH client library, so that a hardened sshd has to
// accept exactly what the real plugin offers.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/pulumi/pulumi/sdk/v3/go/common/util/rpcutil"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// The engine passes properties of any size; gRPC's own limit of 4 MiB is too small for a bundle of files.
const maxMessageSize = 400 << 20

func main() {
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, "pulumi-resource-command (rehearsal): "+err.Error())
		os.Exit(1)
	}
}

// serve answers the engine until it cancels, interrupts or disappears.
func serve() error {
	if info, err := os.Stat(os.Getenv("UDS_REHEARSAL")); err != nil || !info.IsDir() {
		return fmt.Errorf("this plugin only serves a rehearsal, and UDS_REHEARSAL does not name the directory of one")
	}
	if len(os.Args) < 2 {
		return fmt.Errorf("the address of the engine is missing: Pulumi starts this program, people don't")
	}
	engineAddress := os.Args[len(os.Args)-1]

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	conn, err := grpc.NewClient(engineAddress, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("connect to the engine: %w", err)
	}
	defer conn.Close()
	// An engine that was killed sends no signal.
	if err := rpcutil.Healthcheck(ctx, engineAddress, time.Second, stop); err != nil {
		return fmt.Errorf("watch the engine: %w", err)
	}

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen for the engine: %w", err)
	}
	server := grpc.NewServer(grpc.MaxRecvMsgSize(maxMessageSize))
	pulumirpc.RegisterResourceProviderServer(server, &provider{
		engine: pulumirpc.NewEngineClient(conn),
		ctx:    ctx,
		cancel: stop,
	})
	go func() {
		<-ctx.Done()
		// A moment for the running operations to answer that they were cancelled.
		time.AfterFunc(time.Second, server.Stop)
		server.GracefulStop()
	}()
	fmt.Println(listener.Addr().(*net.TCPAddr).Port) // the engine reads the port from the first line
	return server.Serve(listener)
}

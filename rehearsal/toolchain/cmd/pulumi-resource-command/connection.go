package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

const (
	firstDelay  = 100 * time.Millisecond
	longestWait = 5 * time.Second
	backOff     = 1.5
	unlimited   = -1
)

// target is an SSH server and how to log in to it.
type target struct {
	Host               string  `json:"host"`
	User               string  `json:"user"`
	Port               float64 `json:"port"`
	Password           *string `json:"password"`
	PrivateKey         *string `json:"privateKey"`
	PrivateKeyPassword *string `json:"privateKeyPassword"`
	AgentSocketPath    *string `json:"agentSocketPath"`
	HostKey            *string `json:"hostKey"`
	DialErrorLimit     int     `json:"dialErrorLimit"`
	PerDialTimeout     int     `json:"perDialTimeout"` // seconds; bounds the TCP connection, not the handshake
}

type connection struct {
	target
	Proxy *target `json:"proxy"`
}

func (t target) address() string {
	return net.JoinHostPort(t.Host, strconv.FormatFloat(t.Port, 'f', 0, 64))
}

// clientConfig offers the ways to log in, in the real plugin's order. release closes the connection to the agent.
func (t target) clientConfig() (config *ssh.ClientConfig, release func(), err error) {
	release = func() {}
	config = &ssh.ClientConfig{
		User: t.User,
		// The real plugin trusts any key when none is given; a stack that forgets to pin must behave the same here.
		HostKeyCallback: ssh.InsecureIgnoreHostKey(),
	}
	if t.HostKey != nil {
		key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(*t.HostKey))
		if err != nil {
			return nil, nil, fmt.Errorf("failed to parse host key: %w", err)
		}
		config.HostKeyCallback = ssh.FixedHostKey(key)
		config.HostKeyAlgorithms = []string{key.Type()}
	}
	if t.PrivateKey != nil {
		var signer ssh.Signer
		if t.PrivateKeyPassword != nil {
			signer, err = ssh.ParsePrivateKeyWithPassphrase([]byte(*t.PrivateKey), []byte(*t.PrivateKeyPassword))
		} else {
			signer, err = ssh.ParsePrivateKey([]byte(*t.PrivateKey))
		}
		if err != nil {
			return nil, nil, err
		}
		config.Auth = append(config.Auth, ssh.PublicKeys(signer))
	}
	if t.Password != nil {
		answer := func(_, _ string, questions []string, _ []bool) ([]string, error) {
			answers := make([]string, len(questions))
			for i := range answers {
				answers[i] = *t.Password
			}
			return answers, nil
		}
		config.Auth = append(config.Auth, ssh.Password(*t.Password), ssh.KeyboardInteractive(answer))
	}
	socket := os.Getenv("SSH_AUTH_SOCK")
	if t.AgentSocketPath != nil {
		socket = *t.AgentSocketPath
	}
	if socket != "" {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			return nil, nil, err
		}
		release = func() { conn.Close() }
		config.Auth = append(config.Auth, ssh.PublicKeysCallback(agent.NewClient(conn).Signers))
	}
	return config, release, nil
}

// connect logs in, through the proxy if there is one. closeAll ends every connection that was opened (the real plugin
// leaves some open); all of them end by themselves when the operation is cancelled.
func (o operation) connect(c connection) (client *ssh.Client, closeAll func(), err error) {
	var closers []func()
	closeThem := func() {
		for i := len(closers) - 1; i >= 0; i-- {
			closers[i]()
		}
	}
	defer func() {
		if err != nil {
			closeThem()
			if o.ctx.Err() != nil {
				err = errors.New("cancelled while connecting")
			}
		}
	}()

	config, release, err := c.clientConfig()
	if err != nil {
		return nil, nil, err
	}
	closers = append(closers, release)
	if c.Proxy == nil {
		client, err = retry(o, "Dial", c.DialErrorLimit, func() (*ssh.Client, error) {
			return o.login(c.target, config, nil)
		})
		if err != nil {
			return nil, nil, err
		}
		closers = append(closers, func() { client.Close() })
		return client, closeThem, nil
	}

	proxyConfig, release, err := c.Proxy.clientConfig()
	if err != nil {
		return nil, nil, fmt.Errorf("proxy: %w", err)
	}
	closers = append(closers, release)
	bastion, err := retry(o, "Dial proxy", c.Proxy.DialErrorLimit, func() (*ssh.Client, error) {
		return o.login(*c.Proxy, proxyConfig, nil)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("proxy: %w", err)
	}
	closers = append(closers, func() { bastion.Close() })
	conn, err := retry(o, "Dial from proxy", c.DialErrorLimit, func() (net.Conn, error) {
		return bastion.DialContext(o.ctx, "tcp", c.address())
	})
	if err != nil {
		return nil, nil, fmt.Errorf("proxy: %w", err)
	}
	// The real plugin's later tries use the connection that its first handshake has ended: they can't succeed.
	if client, err = o.login(c.target, config, conn); err != nil {
		return nil, nil, fmt.Errorf("proxy: after 1 failed attempts: %w", err)
	}
	closers = append(closers, func() { client.Close() })
	return client, closeThem, nil
}

// login makes an SSH connection over conn, or over a TCP connection of its own if there is none.
func (o operation) login(t target, config *ssh.ClientConfig, conn net.Conn) (*ssh.Client, error) {
	if conn == nil {
		dialer := net.Dialer{Timeout: time.Duration(t.PerDialTimeout) * time.Second}
		var err error
		if conn, err = dialer.DialContext(o.ctx, "tcp", t.address()); err != nil {
			return nil, err
		}
	}
	stop := context.AfterFunc(o.ctx, func() { conn.Close() })
	sshConn, channels, requests, err := ssh.NewClientConn(conn, t.address(), config)
	if err != nil {
		stop()
		conn.Close()
		return nil, err
	}
	return ssh.NewClient(sshConn, channels, requests), nil
}

// retry tries until it succeeds or more than limit tries have failed, with growing pauses.
func retry[T any](o operation, what string, limit int, try func() (T, error)) (T, error) {
	pause := firstDelay
	for failed := 1; ; failed++ {
		result, err := try()
		if err == nil {
			return result, nil
		}
		if limit != unlimited && failed > limit {
			return result, fmt.Errorf("after %d failed attempts: %w", limit, err)
		}
		of := strconv.Itoa(limit)
		if limit == unlimited {
			of = "inf"
		}
		o.log(pulumirpc.LogSeverity_INFO, true, fmt.Sprintf("%s %d/%s failed: retrying", what, failed, of))
		select {
		case <-o.ctx.Done():
			return result, o.ctx.Err()
		case <-time.After(pause):
		}
		pause = min(time.Duration(float64(pause)*backOff), longestWait)
	}
}
